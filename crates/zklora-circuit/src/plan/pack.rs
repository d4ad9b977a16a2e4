//! Ways to group modules.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::repeat_n;

use zklora_proto::ModuleShape;

use super::{PROOF_CELLS, columns, degree_bits};
use crate::circuit::rows;
use crate::parameters::Security;

/// A way to group modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arrangement {
    /// One proof of all modules.
    Together,
    /// Equal batches of as many modules of each shape as their number allows; what is left over is packed.
    Equal {
        /// How many are equal.
        batches: usize,
    },
    /// Circuits of up to this many rows are filled, the largest modules first; each then shrinks to the rows that it needs.
    Packed {
        /// Logarithm of the most rows.
        bits: usize,
    },
    /// Modules that need more rows than this, and all others, are grouped apart: each in the cheapest of the ways above.
    Apart {
        /// Logarithm of the rows.
        bits: usize,
    },
    /// A proof for each module.
    Single,
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Together => f.write_str("all modules in one proof"),
            Self::Equal { batches } => {
                write!(f, "{batches} equal batches, and what is left over packed")
            }
            Self::Packed { bits } => write!(f, "circuits of up to 2^{bits} rows, filled one after another"),
            Self::Apart { bits } => {
                write!(f, "modules of more than 2^{bits} rows apart from all others")
            }
            Self::Single => f.write_str("a proof for each module"),
        }
    }
}

/// Batches that have the same number of modules of each pile, by that: (pile, modules), in the order in which the manifest first
/// has them.
pub(super) type Packing = BTreeMap<Vec<(usize, usize)>, usize>;

/// Rows are counted in parts of one, since modules share some: 1/256.
const PARTS: usize = 256;
/// What the first module of another shape may add to a circuit for the constants that describe the shape.
const SHAPE_ROWS: usize = 4;
/// Numbers of equal batches that are tried, times piles.
const TRIES: usize = 1 << 14;
/// Kinds of open batches that a module is tried in when batches are filled.
const OPEN: usize = 64;

/// The modules to be grouped, by shape, those with the most rows first.
///
/// While ways are searched, rows are estimated: a sum over modules, which is never less than what a large circuit has.
pub(super) struct ShapeGroups {
    piles: Vec<Pile>,
    columns: u64,
    /// What a circuit has beside its modules, in parts of a row.
    base: usize,
    /// Logarithm of the rows of the smallest circuit.
    least_bits: usize,
}

struct Pile {
    shape: ModuleShape,
    modules: Vec<usize>,
    /// What each module adds to a circuit, in parts of a row.
    parts: usize,
    /// Logarithm of the rows of a circuit for one module.
    alone: usize,
}

/// Modules of some piles: (pile, modules).
type Counts = Vec<(usize, usize)>;

/// Equal batches that are being filled.
#[derive(Clone)]
struct Open {
    contents: Counts,
    copies: usize,
    used: usize,
}

/// Batches and what they cost, in cells.
#[derive(Clone)]
struct Found {
    way: Arrangement,
    cost: u64,
    proofs: usize,
    batches: Vec<Open>,
}

impl ShapeGroups {
    /// Piles of these shapes, all different, and the modules of each.
    pub(super) fn new(security: Security, shapes: Vec<(ModuleShape, Vec<usize>)>) -> Self {
        let mut base = 0;
        let mut piles: Vec<Pile> = shapes
            .into_iter()
            .map(|(shape, modules)| {
                // Many modules, so that neither roundings nor the least number of rows count.
                let many = rows(security, &vec![shape; PARTS]);
                let parts = rows(security, &vec![shape; 2 * PARTS]) - many;
                base = base.max(PARTS * many.saturating_sub(parts));
                Pile { shape, modules, parts, alone: degree_bits(security, &[shape]) }
            })
            .collect();
        piles.sort_by_key(|pile| std::cmp::Reverse(pile.parts));
        let least_bits = piles.iter().map(|pile| pile.alone).min().unwrap_or(0);
        Self { piles, columns: columns(security), base, least_bits }
    }

    /// Different ways to group all modules into circuits of at most `2^largest` rows, the best found of each. By the estimate,
    /// their circuits are not too large; whether they are is for the caller to see.
    pub(super) fn packings(&self, largest: usize) -> Vec<(Arrangement, Packing)> {
        let all: Counts = self.piles.iter().map(|pile| pile.modules.len()).enumerate().collect();
        if all.is_empty() {
            return Vec::new();
        }
        let mut found = self.ways(&all, largest);
        let mut sizes: Vec<usize> = self.piles.iter().map(|pile| pile.alone).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes.pop();
        for bits in sizes {
            let (large, small): (Counts, Counts) =
                all.iter().partition(|(pile, _)| self.piles[*pile].alone > bits);
            let best = |counts| self.ways(counts, largest).into_iter().min_by_key(Found::order);
            if let (Some(large), Some(small)) = (best(&large), best(&small)) {
                found.push(Found {
                    way: Arrangement::Apart { bits },
                    cost: large.cost + small.cost,
                    proofs: large.proofs + small.proofs,
                    batches: [large.batches, small.batches].concat(),
                });
            }
        }
        found.into_iter().map(|found| (found.way, self.packing(found))).collect()
    }

    /// The different circuits of a packing, and how many batches have each.
    pub(super) fn circuits<'a>(
        &'a self,
        packing: &'a Packing,
    ) -> impl Iterator<Item = (Vec<ModuleShape>, usize)> + 'a {
        packing.iter().map(|(contents, &copies)| {
            let shapes = |&(pile, count): &(usize, usize)| repeat_n(self.piles[pile].shape, count);
            (contents.iter().flat_map(shapes).collect(), copies)
        })
    }

    /// The modules of each batch of a packing: of each shape in the manifest's order. Batches of one circuit follow one another,
    /// and circuits each other by the first module that they are for.
    pub(super) fn deal(&self, packing: &Packing) -> Vec<Vec<usize>> {
        let mut piles: Vec<_> = self.piles.iter().map(|pile| pile.modules.iter().copied()).collect();
        let mut batch = |contents: &Counts| -> Vec<usize> {
            contents
                .iter()
                .flat_map(|&(pile, count)| piles[pile].by_ref().take(count).collect::<Vec<_>>())
                .collect()
        };
        let mut circuits: Vec<Vec<Vec<usize>>> = packing
            .iter()
            .map(|(contents, &copies)| (0..copies).map(|_| batch(contents)).collect())
            .collect();
        circuits.sort_by_key(|batches| batches.iter().flatten().min().copied());
        circuits.concat()
    }

    /// The best of every way but [`Arrangement::Apart`] for these modules.
    fn ways(&self, counts: &Counts, largest: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let mut add = |way, batches: Vec<Open>| found.extend(self.found(way, batches, largest));
        add(Arrangement::Together, vec![self.batch(counts.clone(), 1)]);
        add(
            Arrangement::Single,
            counts.iter().map(|&(pile, count)| self.batch(vec![(pile, 1)], count)).collect(),
        );
        for bits in self.least(counts)..=largest {
            add(Arrangement::Packed { bits }, self.fill(counts, bits));
        }
        let most = counts.iter().map(|&(_, count)| count).max().unwrap_or(0);
        let equal = (2..=most.min(TRIES / counts.len().max(1)))
            .filter_map(|batches| self.equal(counts, batches, largest))
            .min_by_key(Found::order);
        found.extend(equal);
        found
    }

    /// That many equal batches, and what is left over filled into circuits of the best size for it.
    fn equal(&self, counts: &Counts, batches: usize, largest: usize) -> Option<Found> {
        let some = |counts: &mut dyn Iterator<Item = (usize, usize)>| -> Counts {
            counts.filter(|&(_, count)| count > 0).collect()
        };
        let share = some(&mut counts.iter().map(|&(pile, count)| (pile, count / batches)));
        let rest = some(&mut counts.iter().map(|&(pile, count)| (pile, count % batches)));
        let block = self.batch(share, batches);
        if self.bits(&block) > largest {
            return None;
        }
        // Without a rest, its size does not matter.
        let sizes = if rest.is_empty() { largest..=largest } else { self.least(&rest)..=largest };
        let found = sizes.filter_map(|bits| {
            let mut all = self.fill(&rest, bits);
            all.push(block.clone());
            self.found(Arrangement::Equal { batches }, all, largest)
        });
        found.min_by_key(Found::order)
    }

    /// Logarithm of the rows of the smallest circuit that holds each of these modules alone.
    fn least(&self, counts: &Counts) -> usize {
        counts.iter().map(|&(pile, _)| self.piles[pile].alone).max().unwrap_or(0)
    }

    /// Fills batches of up to `2^bits` rows, the largest modules first, each into the first that has room. Modules are spread
    /// evenly over equal batches, so that they stay equal.
    fn fill(&self, counts: &Counts, bits: usize) -> Vec<Open> {
        let capacity = PARTS << bits;
        let mut batches = Vec::<Open>::new();
        for &(pile, mut left) in counts {
            let parts = self.piles[pile].parts;
            for index in batches.len().saturating_sub(OPEN)..batches.len() {
                let open = &batches[index];
                let room = capacity.saturating_sub(open.used + PARTS * SHAPE_ROWS) / parts.max(1);
                let (each, more) = if left >= room * open.copies {
                    (room, 0)
                } else {
                    (left / open.copies, left % open.copies)
                };
                if more > 0 {
                    let mut larger = Open { copies: more, ..open.clone() };
                    self.put(&mut larger, pile, each + 1);
                    batches[index].copies -= more;
                    batches.push(larger);
                    left -= more * (each + 1);
                }
                self.put(&mut batches[index], pile, each);
                left -= each * batches[index].copies;
            }
            if left > 0 {
                // At least one: that it fits alone is known.
                let each = (capacity.saturating_sub(self.base) / parts.max(1)).max(1);
                for (each, copies) in [(each, left / each), (left % each, 1)] {
                    if each * copies > 0 {
                        batches.push(self.batch(vec![(pile, each)], copies));
                    }
                }
            }
        }
        batches
    }

    fn batch(&self, contents: Counts, copies: usize) -> Open {
        let mut open = Open { contents: Vec::new(), copies, used: self.base };
        for (pile, count) in contents {
            self.put(&mut open, pile, count);
        }
        open
    }

    fn put(&self, open: &mut Open, pile: usize, count: usize) {
        if count > 0 {
            let another = if open.contents.is_empty() { 0 } else { PARTS * SHAPE_ROWS };
            open.used += another + count * self.piles[pile].parts;
            open.contents.push((pile, count));
        }
    }

    /// Logarithm of the rows of such a batch, by the estimate.
    fn bits(&self, open: &Open) -> usize {
        match open.contents[..] {
            [(pile, 1)] => self.piles[pile].alone,
            _ => {
                let rows = open.used.div_ceil(PARTS).next_power_of_two();
                self.least_bits.max(rows.trailing_zeros() as usize)
            }
        }
    }

    fn packing(&self, found: Found) -> Packing {
        let mut packing = Packing::new();
        for mut open in found.batches {
            open.contents.sort_unstable_by_key(|(pile, _)| self.piles[*pile].modules[0]);
            *packing.entry(open.contents).or_default() += open.copies;
        }
        packing
    }

    /// These batches with their cost, if no circuit is too large.
    fn found(&self, way: Arrangement, batches: Vec<Open>, largest: usize) -> Option<Found> {
        let (mut cost, mut proofs) = (0, 0);
        for open in &batches {
            let bits = self.bits(open);
            if bits > largest {
                return None;
            }
            cost += open.copies as u64 * PROOF_CELLS + (self.columns << bits) * (open.copies as u64 + 1);
            proofs += open.copies;
        }
        Some(Found { way, cost, proofs, batches })
    }
}

impl Found {
    fn order(&self) -> (u64, usize) {
        (self.cost, self.proofs)
    }
}
