//! Lookups: all cells that are to be in a range or a table are, by sums of fractions.
//!
//! U. Haböck's LogUp (eprint 2022/1530): for a random α, `Σ_i 1/(α - key_i) = Σ_j m_j/(α - key'_j)` over the keys that are looked up and those of the table, with
//! multiplicities m that the prover commits to beforehand. A key is `index + λ·value + λ²·tag`, so that one sum serves several tables. The left side is a tree of
//! fractions, gone through from its root by sumchecks (S. Papini, U. Haböck, eprint 2023/1284); the right side is a functional of the cells m.
//!
//! A false key passes with chance `keys/|E|`: sums have at most 2^23 keys each, with multiplicities of their own.

use p3_field::{Field, PrimeCharacteristicRing, PrimeField64, batch_multiplicative_inverse};
use rayon::prelude::*;

use crate::claims::{Functional, Piece};
use crate::conversation::{Message, Value};
use crate::field::{E, F, eq_at};
use crate::layout::{ArrayId, Block, Builder, Cells, LIMB_BITS, Layout};
use crate::scene::Scene;
use crate::sumcheck::{self, Products};

/// Logarithm of the most keys of a sum.
pub const SUM_BITS: usize = 23;
/// Entries of a table.
pub const TABLE: usize = 1 << LIMB_BITS;

/// A public table: of an index alone, or with a value each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Values by index; none for the range `0..2^16`.
    pub values: Option<Vec<F>>,
}

/// A block of cells that are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lookup {
    /// The block of the indices.
    index: (ArrayId, usize),
    /// What its cells are multiplied by.
    factor: F,
    /// The array of the values.
    value: Option<ArrayId>,
    /// Which table.
    table: usize,
    /// Logarithm of its cells.
    bits: usize,
    /// Where its first leaf is.
    leaf: usize,
}

/// The lookups of one sum.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sum {
    lookups: Vec<Lookup>,
    /// Logarithm of the leaves.
    bits: usize,
    /// The tables that it needs, each with its multiplicities.
    multiplicities: Vec<(usize, ArrayId)>,
}

/// All lookups of a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookups {
    /// The first is the range.
    tables: Vec<Table>,
    sums: Vec<Sum>,
}

impl Lookups {
    /// Every limb of the arrays so far is looked up in the range, one of b < 16 bits also times `2^(16-b)`; and pairs of arrays in tables. Adds arrays for the multiplicities.
    pub fn new(builder: &mut Builder, tables: Vec<Table>, pairs: &[(usize, ArrayId, ArrayId)]) -> Self {
        let mut lookups = Vec::new();
        // A layout of what there is so far has the same blocks, at other offsets.
        let layout = builder.clone().build();
        let blocks = |id: ArrayId| {
            layout.array(id).blocks.iter().enumerate().map(move |(index, block)| ((id, index), block.bits()))
        };
        for (id, array) in layout.arrays() {
            let Cells::Limb { bits: width } = array.cells else { continue };
            let narrow = (width < LIMB_BITS).then(|| F::from_u64(1 << (LIMB_BITS - width)));
            for factor in [F::ONE].into_iter().chain(narrow) {
                lookups.extend(blocks(id).map(|(index, bits)| Lookup {
                    index,
                    factor,
                    value: None,
                    table: 0,
                    bits,
                    leaf: 0,
                }));
            }
        }
        for &(table, index, value) in pairs {
            lookups.extend(blocks(index).map(|(index, bits)| Lookup {
                index,
                factor: F::ONE,
                value: Some(value),
                table,
                bits,
                leaf: 0,
            }));
        }
        lookups.sort_by_key(|lookup| std::cmp::Reverse(lookup.bits));
        let mut sums: Vec<(usize, Vec<Lookup>)> = Vec::new();
        for lookup in lookups {
            let fits = |leaves: usize| leaves + (1 << lookup.bits) <= 1 << SUM_BITS;
            match sums.last_mut().filter(|(leaves, _)| fits(*leaves)) {
                Some((leaves, lookups)) => {
                    lookups.push(Lookup { leaf: *leaves, ..lookup });
                    *leaves += 1 << lookup.bits;
                }
                None => sums.push((1 << lookup.bits, vec![lookup])),
            }
        }
        let sums = sums
            .into_iter()
            .map(|(leaves, lookups)| {
                let mut used: Vec<usize> = lookups.iter().map(|lookup| lookup.table).collect();
                used.sort_unstable();
                used.dedup();
                let multiplicities =
                    used.into_iter().map(|table| (table, builder.array(1, TABLE, Cells::Free))).collect();
                Sum { lookups, bits: crate::field::bits_of(leaves), multiplicities }
            })
            .collect();
        let tables = [Table { values: None }].into_iter().chain(tables).collect();
        Self { tables, sums }
    }

    /// Counts what is looked up, into the cells of the multiplicities. A cell that is in no table is counted nowhere: what it is part of cannot be proved.
    pub fn count(&self, layout: &Layout, cells: &mut [F]) {
        for sum in &self.sums {
            for &(table, array) in &sum.multiplicities {
                let mut counts = vec![0u64; TABLE];
                for lookup in sum.lookups.iter().filter(|lookup| lookup.table == table) {
                    for &cell in &cells[lookup.block(layout).range()] {
                        let index = (cell * lookup.factor).as_canonical_u64();
                        if let Some(count) = usize::try_from(index).ok().and_then(|i| counts.get_mut(i)) {
                            *count += 1;
                        }
                    }
                }
                for block in &layout.array(array).blocks {
                    for (cell, &count) in cells[block.range()].iter_mut().zip(&counts[block.column..]) {
                        *cell = F::from_u64(count);
                    }
                }
                crate::field::wipe(&mut counts);
            }
        }
    }

    /// `log2` of the most keys of a sum and a table.
    pub fn sum_bits(&self) -> f64 {
        let keys = |sum: &Sum| {
            (sum.lookups.iter().map(|lookup| 1usize << lookup.bits).sum::<usize>()
                + TABLE * sum.multiplicities.len()) as f64
        };
        self.sums.iter().map(keys).fold(1.0, f64::max).log2()
    }

    /// Everything that decides what is looked up, for a digest.
    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        hash(&(self.tables.len() as u64).to_le_bytes());
        for table in &self.tables {
            match &table.values {
                None => hash(&[0]),
                Some(values) => {
                    hash(&[1]);
                    hash(&(values.len() as u64).to_le_bytes());
                    values.iter().for_each(|value| hash(&value.as_canonical_u64().to_le_bytes()));
                }
            }
        }
        hash(&(self.sums.len() as u64).to_le_bytes());
        for sum in &self.sums {
            hash(&(sum.lookups.len() as u64).to_le_bytes());
            for lookup in &sum.lookups {
                let value = lookup.value.map_or(u64::MAX, |id| id.0 as u64);
                let (id, block) = lookup.index;
                let factor = lookup.factor.as_canonical_u64();
                for number in
                    [id.0 as u64, block as u64, factor, value, lookup.table as u64, lookup.leaf as u64]
                {
                    hash(&number.to_le_bytes());
                }
            }
        }
    }

    /// Shows that all lookups are in their tables.
    pub(crate) fn converse(&self, scene: &mut Scene<'_>) {
        let alpha = scene.run.challenge("lookup alpha");
        let lambda = scene.run.challenge("lookup lambda");
        for sum in &self.sums {
            self.converse_about(scene, sum, alpha, lambda);
        }
    }

    fn converse_about(&self, scene: &mut Scene<'_>, sum: &Sum, alpha: E, lambda: E) {
        let layout = scene.layout;
        let of_tables: Vec<Message> = sum
            .multiplicities
            .iter()
            .map(|&(table, array)| {
                scene.claim(|| {
                    let mut weights = self.keys(table, lambda);
                    weights.par_iter_mut().for_each(|key| *key = alpha - *key);
                    let inverses = batch_multiplicative_inverse(&weights);
                    layout.dense(array, 0, &inverses)
                })
            })
            .collect();

        let mut tree = scene.cells.map(|cells| Tree::new(sum.leaves(layout, cells, alpha, lambda)));
        let root = tree.as_ref().map_or((E::ZERO, E::ONE), Tree::root);
        let numerator = scene.run.message(|| root.0);
        let denominator = scene.run.message(|| root.1);
        let inverse = scene.run.message(|| root.1.try_inverse().unwrap_or(E::ZERO));
        // numerator = denominator · Σ tables, and no denominator is zero.
        let numerator_value = scene.run.value(numerator);
        let products: Vec<_> = of_tables.iter().map(|&table| (-E::ONE, denominator, table)).collect();
        scene.run.check(E::ZERO, &[(E::ONE, numerator_value)], &products);
        scene.run.check(-E::ONE, &[], &[(E::ONE, denominator, inverse)]);

        let (mut n, mut d) = (numerator_value, scene.run.value(denominator));
        let mut point: Vec<E> = Vec::new();
        for level in 0..sum.bits {
            let mix = scene.run.challenge("fraction");
            let claim = scene.run.affine(E::ZERO, &[(E::ONE, n), (mix, d)]);
            let mut prover = tree.as_mut().map(|tree| tree.layer(level, mix, &point));
            let (end, below) = sumcheck::zero_check(
                &mut scene.run,
                claim,
                &point,
                2,
                prover.as_mut().map(|prover| prover as _),
            );
            let mut ends = prover.map_or_else(Vec::new, |prover| prover.ends()).into_iter();
            let [n0, n1, d0, d1]: [Message; 4] =
                std::array::from_fn(|_| scene.run.message(|| ends.next().unwrap_or(E::ZERO)));
            scene.run.check(E::ZERO, &[(-E::ONE, end)], &[(E::ONE, n0, d1), (E::ONE, n1, d0), (mix, d0, d1)]);
            let side = scene.run.challenge("side");
            let [n0, n1, d0, d1] = [n0, n1, d0, d1].map(|message| scene.run.value(message));
            n = scene.run.affine(E::ZERO, &[(E::ONE - side, n0), (side, n1)]);
            d = scene.run.affine(E::ZERO, &[(E::ONE - side, d0), (side, d1)]);
            point = [vec![side], below].concat();
        }
        self.check_leaves(scene, sum, (n, d), &point, alpha, lambda);
    }

    /// Numerators are public, denominators a functional of the cells: `1 - s + α·s - Σ key` for the share s of leaves that are looked up.
    fn check_leaves(
        &self,
        scene: &mut Scene<'_>,
        sum: &Sum,
        (n, d): (Value, Value),
        point: &[E],
        alpha: E,
        lambda: E,
    ) {
        let layout = scene.layout;
        let (share, tags) = scene.run.public((E::ZERO, E::ZERO), || {
            sum.lookups.iter().fold((E::ZERO, E::ZERO), |(share, tags), lookup| {
                let here = lookup.share(point);
                (share + here, tags + here * F::from_usize(lookup.table))
            })
        });
        let keys = scene.claim(|| {
            let mut all = Functional::default();
            for lookup in &sum.lookups {
                let here = lookup.share(point);
                let low = &point[point.len() - lookup.bits..];
                let mut piece = |block: &Block, factor: E| {
                    all.0.push(Piece::Block { offset: block.offset, point: low.to_vec(), factor });
                };
                piece(lookup.block(layout), here * lookup.factor);
                if let Some(value) = lookup.value_block(layout) {
                    piece(value, here * lambda);
                }
            }
            all
        });
        let keys = scene.run.value(keys);
        scene.run.check(-share, &[(E::ONE, n)], &[]);
        let rest = E::ONE - share + alpha * share - lambda * lambda * tags;
        scene.run.check(-rest, &[(E::ONE, d), (E::ONE, keys)], &[]);
    }

    /// A table's keys.
    fn keys(&self, table: usize, lambda: E) -> Vec<E> {
        let tag = lambda * lambda * F::from_usize(table);
        (0..TABLE)
            .map(|index| {
                let value =
                    self.tables[table].values.as_ref().map_or(E::ZERO, |values| lambda * values[index]);
                tag + value + F::from_usize(index)
            })
            .collect()
    }
}

impl Lookup {
    fn block<'a>(&self, layout: &'a Layout) -> &'a Block {
        &layout.array(self.index.0).blocks[self.index.1]
    }

    fn value_block<'a>(&self, layout: &'a Layout) -> Option<&'a Block> {
        Some(&layout.array(self.value?).blocks[self.index.1])
    }

    /// `eq` of a point and the place of its leaves.
    fn share(&self, point: &[E]) -> E {
        eq_at(&point[..point.len() - self.bits], self.leaf >> self.bits)
    }
}

impl Sum {
    /// Numerators and denominators of the leaves.
    fn leaves(&self, layout: &Layout, cells: &[F], alpha: E, lambda: E) -> Level {
        let (mut n, mut d) = (E::zero_vec(1 << self.bits), vec![E::ONE; 1 << self.bits]);
        for lookup in &self.lookups {
            let range = lookup.leaf..lookup.leaf + (1 << lookup.bits);
            n[range.clone()].fill(E::ONE);
            let base = alpha - lambda * lambda * F::from_usize(lookup.table);
            let indices = &cells[lookup.block(layout).range()];
            let values = lookup.value_block(layout).map(|block| &cells[block.range()]);
            d[range].par_iter_mut().with_min_len(1 << 10).enumerate().for_each(|(i, d)| {
                let value = values.map_or(E::ZERO, |values| lambda * values[i]);
                *d = base - value - indices[i] * lookup.factor;
            });
        }
        Level { n, d }
    }
}

/// One level of a tree: fractions.
struct Level {
    n: Vec<E>,
    d: Vec<E>,
}

/// A tree of fractions: each is the sum of the one in its place in the two halves of the level below.
struct Tree {
    /// From the root to the leaves. Secret.
    levels: Vec<Level>,
}

impl Tree {
    fn new(leaves: Level) -> Self {
        let mut levels = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.n.len() > 1) {
            let half = below.n.len() / 2;
            let (n, d) = (0..half)
                .into_par_iter()
                .with_min_len(1 << 9)
                .map(|i| {
                    let (n, d) = (&below.n, &below.d);
                    (n[i] * d[i + half] + n[i + half] * d[i], d[i] * d[i + half])
                })
                .unzip();
            levels.push(Level { n, d });
        }
        levels.reverse();
        Self { levels }
    }

    fn root(&self) -> (E, E) {
        (self.levels[0].n[0], self.levels[0].d[0])
    }

    /// The prover of one level's claim, which takes the level below.
    fn layer(&mut self, level: usize, mix: E, point: &[E]) -> Products {
        let below = &mut self.levels[level + 1];
        let halves = |all: &mut Vec<E>| {
            let high = all.split_off(all.len() / 2);
            (std::mem::take(all), high)
        };
        let ((n0, n1), (d0, d1)) = (halves(&mut below.n), halves(&mut below.d));
        let terms = vec![(E::ONE, vec![0, 3]), (E::ONE, vec![1, 2]), (mix, vec![2, 3])];
        Products::under_eq(vec![n0, n1, d0, d1], terms, point)
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        crate::field::wipe(&mut self.n);
        crate::field::wipe(&mut self.d);
    }
}
