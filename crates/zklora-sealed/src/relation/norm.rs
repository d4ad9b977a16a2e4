//! A norm of the residual stream.
//!
//! For rows H of d entries, with `N = H - μ` and `K = d·2^50`:
//!
//! ```text
//! (1)  Σ_i H + ⌊d/2⌋ = d·μ + ρ,   ρ + ρ' = d - 1                 μ is the rounded mean
//! (2)  V = Σ_i N² + ε,            V = 2^24·V_a + V_b
//! (3)  R·V_b = a_0 + 2^24·c_0,    R·V_a + c_0 = a_1              a_0 + 2^24·a_1 = R·V
//!      R·a_1 + G = K / 2^24,      R·a_0 + E_1 = 2^24·G           R²·V + E_1 = K
//!      E_1 + E_2 + 1 = 2·(a_0 + 2^24·a_1) + V                    (R+1)²·V - K = E_2 + 1
//! (4)  2·r - R = b                                               r is the integer nearest to √(K/V)/2
//! (5)  2^16·X + R_X = r·N + 2^15
//! ```
//!
//! No product of more than two limbs is formed, so that nothing reaches 2^62: R², V alone would. (1) to (4) are shown for all rows at once at a random point, weighed with
//! powers of a challenge; (2) and (5), which are sums over the entries, by one more sumcheck over rows and entries. H is a sum of public numbers and of what layers wrote, and never
//! committed itself.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;

use super::{Cut, RelationError, bounded, power};
use crate::field::{E, F, Secret, below, bits_of, eq_table, signed};
use crate::layout::{Builder, Layout, Tensor};
use crate::scene::{Said, Scene, Sum};
use crate::sumcheck::{self, Products};
use crate::witness::{OutOfRange, Witness};

/// Rows of public numbers, and tensors that are added to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residual {
    /// Public, `rows x columns`.
    pub public: Arc<[i64]>,
    /// Written by layers, `rows x columns` each.
    pub written: Vec<Tensor>,
    /// Rows.
    pub rows: usize,
    /// The rows of the tensors that are meant, if not all; `public` has no others.
    pub positions: Option<Arc<[usize]>>,
    /// d.
    pub columns: usize,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Norm {
    /// What it is called in errors.
    pub name: String,
    /// H.
    pub residual: Residual,
    /// ε, in units of V.
    pub epsilon: i64,
    /// X and R_X.
    pub cut: Cut,
    statistics: Vec<Tensor>,
}

/// The tensors of one column that a norm has, in this order.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Of {
    Mean,
    Rest,
    RestBelow,
    VarianceHigh,
    VarianceLow,
    Root,
    Scale,
    Parity,
    A0,
    C0,
    A1,
    G,
    E1,
    E2,
}

/// Bits of each, and whether it is signed.
const FORMATS: [u32; 14] = [16, 0, 0, 24, 24, 25, 24, 1, 24, 24, 31, 32, 56, 56];
/// R is at least this: r, half of it rounded up, at least 2^6.
const LEAST_ROOT: i64 = 127;
/// Tables of the rows' sumcheck beside the statistics: Σ H, Σ N², and ones.
const SUM: usize = FORMATS.len();
const SQUARES: usize = SUM + 1;
const ONE: usize = SUM + 2;

impl Norm {
    /// A norm of a residual stream to outputs of signed 16 bits.
    pub fn new(builder: &mut Builder, name: &str, residual: Residual, epsilon: i64) -> Self {
        let (rows, d) = (residual.rows, residual.columns);
        let statistics = (0..FORMATS.len())
            .map(|index| match index {
                _ if index == Of::Mean as usize => builder.signed(rows, 1, FORMATS[index]),
                _ if index == Of::Rest as usize || index == Of::RestBelow as usize => {
                    builder.unsigned(rows, 1, bits_of(d).max(1) as u32)
                }
                _ if index == Of::Root as usize => {
                    Tensor { offset: -LEAST_ROOT, ..builder.unsigned(rows, 1, FORMATS[index]) }
                }
                _ => builder.unsigned(rows, 1, FORMATS[index]),
            })
            .collect();
        let cut = Cut::new(builder, rows, d, 16, 16);
        Self { name: name.into(), residual, epsilon, cut, statistics }
    }

    fn of(&self, what: Of) -> &Tensor {
        &self.statistics[what as usize]
    }

    /// Whether no side of its identities can wrap around, by the declared ranges alone, and sizes fit together.
    pub fn check(&self) -> Result<(), RelationError> {
        self.residual.check(&self.name)?;
        // E_1 < (2·R + 1)·V ≤ 2^50·√d + 2^48 has 56 bits, a_1 ≤ 2^25·√d has 31: wider rows would have statistics without a place.
        const WIDEST: usize = 4064;
        if self.residual.columns > WIDEST {
            return Err(RelationError::Shape {
                name: self.name.clone(),
                what: "rows of more than 4,064 entries",
            });
        }
        let d = self.residual.columns as u128;
        // By column: the public part's most, and what each layer could have written. The mean has 16 bits.
        let public = self.residual.public.iter().map(|x| u128::from(x.unsigned_abs())).max().unwrap_or(0);
        let columns = (0..self.residual.columns).map(|column| {
            let written: u128 = self.residual.written.iter().map(|tensor| tensor.most(column)).sum();
            public + written + (1 << 15)
        });
        let (mut n, mut squares) = (0, 0u128);
        for most in columns {
            n = most.max(n);
            squares = squares.saturating_add(most.saturating_mul(most));
        }
        bounded(&self.name, "Σ H", d.saturating_mul(n + (1 << 16)))?;
        let epsilon = u128::from(self.epsilon.unsigned_abs());
        bounded(&self.name, "Σ N²", squares.saturating_add(epsilon))?;
        bounded(&self.name, "r·N", n.saturating_mul(1 << 24) + (1 << 16))?;
        bounded(&self.name, "2^16·X", self.cut.bound())?;
        // (3) and (4): R < 2^26, and no other factor or side is above these.
        bounded(&self.name, "R·a_1", (1 << 26) * (1 << 31) + (1 << 32))?;
        bounded(&self.name, "K / 2^24", d.saturating_mul(1 << 26))?;
        Ok(bounded(&self.name, "E_1 + E_2", (1 << 57) + 1)?)
    }

    /// Everything that decides what is shown, for a digest.
    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        hash(&self.epsilon.to_le_bytes());
        for count in [
            self.residual.rows,
            self.residual.columns,
            self.residual.positions.as_ref().map_or(usize::MAX, |positions| positions.len()),
        ] {
            hash(&(count as u64).to_le_bytes());
        }
        self.residual.public.iter().for_each(|x| hash(&x.to_le_bytes()));
        let positions = self.residual.positions.iter().flat_map(|positions| positions.iter());
        positions.for_each(|&position| hash(&(position as u64).to_le_bytes()));
    }

    /// All tensors of it, for a digest.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let written = self.residual.written.iter();
        written.chain(&self.statistics).chain([&self.cut.output, &self.cut.remainder])
    }

    /// (1) to (4) as a polynomial in the tables: constants are times the table of ones.
    fn terms(&self, weights: &[E]) -> Vec<(E, Vec<usize>)> {
        use Of::{
            A0, A1, C0, E1, E2, G, Mean, Parity, Rest, RestBelow, Root, Scale, VarianceHigh, VarianceLow,
        };
        let d = self.residual.columns;
        let number = |x: usize| E::from(F::from_usize(x));
        let shift: E = power(24).into();
        let identities: [Vec<(E, Vec<usize>)>; 9] = [
            vec![
                (E::ONE, vec![SUM]),
                (number(d / 2), vec![ONE]),
                (-number(d), vec![Mean as usize]),
                (-E::ONE, vec![Rest as usize]),
            ],
            vec![
                (E::ONE, vec![Rest as usize]),
                (E::ONE, vec![RestBelow as usize]),
                (-number(d - 1), vec![ONE]),
            ],
            vec![
                (shift, vec![VarianceHigh as usize]),
                (E::ONE, vec![VarianceLow as usize]),
                (-E::ONE, vec![SQUARES]),
                (-E::from(signed(self.epsilon)), vec![ONE]),
            ],
            vec![
                (E::ONE, vec![Root as usize, VarianceLow as usize]),
                (-E::ONE, vec![A0 as usize]),
                (-shift, vec![C0 as usize]),
            ],
            vec![
                (E::ONE, vec![Root as usize, VarianceHigh as usize]),
                (E::ONE, vec![C0 as usize]),
                (-E::ONE, vec![A1 as usize]),
            ],
            vec![
                (E::ONE, vec![Root as usize, A1 as usize]),
                (E::ONE, vec![G as usize]),
                (-number(d) * power(26), vec![ONE]),
            ],
            vec![
                (E::ONE, vec![Root as usize, A0 as usize]),
                (E::ONE, vec![E1 as usize]),
                (-shift, vec![G as usize]),
            ],
            vec![
                (E::ONE, vec![E1 as usize]),
                (E::ONE, vec![E2 as usize]),
                (E::ONE, vec![ONE]),
                (-E::TWO, vec![A0 as usize]),
                (-E::TWO * shift, vec![A1 as usize]),
                (-shift, vec![VarianceHigh as usize]),
                (-E::ONE, vec![VarianceLow as usize]),
            ],
            vec![
                (E::TWO, vec![Scale as usize]),
                (-E::ONE, vec![Root as usize]),
                (-E::ONE, vec![Parity as usize]),
            ],
        ];
        let weighed = identities.into_iter().zip(weights);
        weighed.flat_map(|(terms, &w)| terms.into_iter().map(move |(f, tables)| (w * f, tables))).collect()
    }

    pub(crate) fn converse(&self, scene: &mut Scene<'_>) {
        const IDENTITIES: usize = 9;
        let (rows, d) = (self.residual.rows, self.residual.columns);
        let (row_bits, column_bits) = (bits_of(rows), bits_of(d));
        let z = scene.run.challenges("row", row_bits);
        let nu = scene.run.challenge("identities");
        let terms = self.terms(&nu.powers().take(IDENTITIES).collect());

        // Rows.
        let h = scene.cells.map(|_| self.residual.rows_of(scene));
        let statistics: Option<Vec<Secret<E>>> =
            scene.cells.map(|_| self.statistics.iter().map(|tensor| scene.column(tensor)).collect());
        let mut prover = h.as_ref().zip(statistics.as_ref()).map(|(h, statistics)| {
            let mean = &statistics[Of::Mean as usize];
            let over = |f: &dyn Fn(E) -> E| -> Vec<E> {
                let centred =
                    h.chunks(d).zip(mean.iter()).map(|(h, &mean)| h.iter().map(|&h| f(h - mean)).sum());
                centred.collect()
            };
            let sums = h.chunks(d).map(|h| h.iter().copied().sum()).collect();
            let mut tables: Vec<Vec<E>> = statistics.iter().map(|column| column.to_vec()).collect();
            tables.extend([sums, over(&|n| n.square()), vec![E::ONE; rows]]);
            tables.iter_mut().for_each(|table| table.resize(1 << row_bits, E::ZERO));
            Products::under_eq(tables, terms.clone(), &z)
        });
        let zero = scene.run.affine(E::ZERO, &[]);
        let (end, r_t) =
            sumcheck::zero_check(&mut scene.run, zero, &z, 2, prover.as_mut().map(|prover| prover as _));
        let mut said: Vec<Said> =
            self.statistics.iter().map(|tensor| scene.tensor(tensor, &r_t, &[], E::ONE)).collect();
        // Over all columns: the extension at halves, times their number.
        let halves = vec![E::ONE.halve(); column_bits];
        let sum = self.residual.converse(scene, &r_t, &halves, power(column_bits as u32).into());
        let squares = prover.as_ref().map_or(E::ZERO, |prover| prover.ends()[SQUARES]);
        let squares = scene.run.message(|| squares);
        said.extend([sum, Said::from(squares)]);
        let ones = below(&r_t, rows);
        let mut check = Sum::default().value(-E::ONE, end);
        for (factor, tables) in &terms {
            check = match tables[..] {
                [ONE] => check.constant(*factor * ones),
                [x] => check.said(*factor, said[x]),
                [x, y] => check.product(*factor, said[x], said[y]),
                _ => check,
            };
        }
        scene.check(check);

        // Entries: Σ_t eq(r_t, t) Σ_i (N² + ω·eq(z_i, i)·r·N).
        let z_i = scene.run.challenges("entry", column_bits);
        let cut = self.cut.converse(scene, &r_t, &z_i);
        let omega = scene.run.challenge("squares and products");
        let claim = scene.affine(cut.times(omega).said(E::ONE, squares));
        let mut prover = h.zip(statistics).map(|(h, statistics)| {
            let width = 1 << column_bits;
            let eq_i = eq_table(&z_i);
            let (mean, scale) = (&statistics[Of::Mean as usize], &statistics[Of::Scale as usize]);
            let mut tables = vec![E::zero_vec(width << row_bits); 3];
            for (t, h) in h.chunks(d).enumerate() {
                let row = t * width..t * width + d;
                for (target, &h) in tables[0][row].iter_mut().zip(h) {
                    *target = h - mean[t];
                }
                tables[1][t * width..(t + 1) * width].fill(scale[t]);
            }
            tables[2].chunks_mut(width).for_each(|row| row.copy_from_slice(&eq_i));
            let terms = vec![(E::ONE, vec![0, 0]), (omega, vec![0, 1, 2])];
            Products::under_first(tables, terms, &r_t, column_bits, 2)
        });
        let variables: Vec<Option<E>> =
            r_t.iter().copied().map(Some).chain(vec![None; column_bits]).collect();
        let (end, point) =
            sumcheck::rounds(&mut scene.run, claim, &variables, 2, prover.as_mut().map(|prover| prover as _));
        let (s_t, s_i) = point.split_at(row_bits);
        let h = self.residual.converse(scene, s_t, s_i, E::ONE);
        let mean = scene.tensor(self.of(Of::Mean), s_t, &[], E::ONE);
        let scale = scene.tensor(self.of(Of::Scale), s_t, &[], E::ONE);
        let n = prover.as_ref().map_or(E::ZERO, |prover| prover.ends()[0]);
        let n = scene.run.message(|| n);
        scene.check(Sum::default().said(-E::ONE, n).said(E::ONE, h).said(-below(s_i, d), mean));
        let weight = omega * crate::field::eq(&z_i, s_i);
        scene.check(Sum::default().value(-E::ONE, end).product(E::ONE, n, n).product(weight, n, scale));
    }

    /// What an honest prover fills in, from H.
    pub fn values(&self, h: &[i64]) -> Result<NormValues, OutOfRange> {
        self.values_with(h, &|root, scale| (root, scale))
    }

    /// The same with another R and r, and with all that follows from them.
    pub(crate) fn values_with(
        &self,
        h: &[i64],
        choose: &dyn Fn(i64, i64) -> (i64, i64),
    ) -> Result<NormValues, OutOfRange> {
        let d = self.residual.columns as i64;
        let mut values = NormValues::default();
        values.statistics = vec![Vec::new(); FORMATS.len()];
        for h in h.chunks_exact(d as usize) {
            let shifted = h.iter().sum::<i64>() + d / 2;
            let (mean, rest) = (shifted.div_euclid(d), shifted.rem_euclid(d));
            let v = h.iter().map(|h| (h - mean).pow(2)).sum::<i64>() + self.epsilon;
            if !(1..1 << 48).contains(&v) {
                return Err(OutOfRange);
            }
            let k = (d as u128) << 50;
            let root = (k / v as u128).isqrt() as i64;
            let (root, scale) = choose(root, (root + 1) >> 1);
            if root < LEAST_ROOT || scale >> 24 != 0 {
                return Err(OutOfRange);
            }
            let (high, low) = (v >> 24, v & 0xff_ffff);
            let product = root * low;
            let (a0, c0) = (product & 0xff_ffff, product >> 24);
            let a1 = root * high + c0;
            let g = (d << 26) - root * a1;
            let e1 = (g << 24) - root * a0;
            let e2 = 2 * (a0 + (a1 << 24)) + v - e1 - 1;
            let row =
                [mean, rest, d - 1 - rest, high, low, root, scale, 2 * scale - root, a0, c0, a1, g, e1, e2];
            values.statistics.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
            for h in h {
                let (x, r) = self.cut.of(scale * (h - mean));
                values.outputs.push(x);
                values.remainders.push(r);
            }
        }
        Ok(values)
    }

    /// Fills in the cells.
    pub fn fill(
        &self,
        witness: &mut Witness,
        layout: &Layout,
        values: &NormValues,
    ) -> Result<(), OutOfRange> {
        for (tensor, values) in self.statistics.iter().zip(&values.statistics) {
            witness.set(layout, tensor, values)?;
        }
        self.cut.fill(witness, layout, &values.outputs, &values.remainders)
    }
}

/// The values of a norm. Secret where there is an adapter.
#[derive(Default)]
pub struct NormValues {
    statistics: Vec<Vec<i64>>,
    /// X.
    pub outputs: Vec<i64>,
    /// R_X.
    pub remainders: Vec<i64>,
}

impl Drop for NormValues {
    fn drop(&mut self) {
        self.statistics.iter_mut().for_each(|column| crate::field::wipe(column));
        crate::field::wipe(&mut self.outputs);
        crate::field::wipe(&mut self.remainders);
    }
}

impl Residual {
    /// Whether there is a number for each entry, and each row that is meant.
    fn check(&self, name: &str) -> Result<(), RelationError> {
        let numbers = self.rows.checked_mul(self.columns) == Some(self.public.len());
        let rows = self.positions.as_ref().map_or(self.rows, |positions| positions.len());
        let of_written = self.written.first().map(|tensor| tensor.rows);
        let sizes = self.written.iter().all(|t| Some(t.rows) == of_written && t.columns == self.columns);
        let inside = match (&self.positions, of_written) {
            (None, of_written) => of_written.is_none_or(|rows| rows == self.rows),
            (Some(positions), Some(rows)) => positions.iter().all(|&position| position < rows),
            (Some(_), None) => false,
        };
        match numbers && rows == self.rows && sizes && inside && self.columns > 0 {
            true => Ok(()),
            false => Err(RelationError::Shape {
                name: name.into(),
                what: "rows, positions and what was written do not fit together",
            }),
        }
    }

    /// What H's extension is at a point, times a factor.
    fn converse(&self, scene: &mut Scene<'_>, row: &[E], column: &[E], factor: E) -> Said {
        let public = scene.run.public(E::ZERO, || {
            let (row, column) = (eq_table(row), eq_table(column));
            let of_row = |x: &[i64]| x.iter().zip(&column).map(|(&x, &e)| e * signed(x)).sum::<E>();
            self.public.chunks(self.columns).zip(&row).map(|(x, &e)| e * of_row(x)).sum()
        });
        let written = match &self.positions {
            None => scene.tensors(&self.written, row, column, factor),
            Some(positions) => scene.rows(&self.written, || {
                let mut rows = E::zero_vec(self.written.first().map_or(0, |tensor| tensor.rows));
                for (&position, e) in positions.iter().zip(eq_table(row)) {
                    rows[position] += factor * e;
                }
                (rows, eq_table(column))
            }),
        };
        Said { offset: written.offset + factor * public, ..written }
    }

    /// H, to the prover.
    fn rows_of(&self, scene: &Scene<'_>) -> Secret<E> {
        let mut all: Secret<F> = self.public.iter().map(|&x| signed(x)).collect::<Vec<_>>().into();
        match &self.positions {
            None => self.written.iter().for_each(|tensor| scene.add_entries(tensor, &mut all)),
            Some(positions) => {
                let count = self.written.first().map_or(0, |tensor| tensor.rows * tensor.columns);
                let mut entries: Secret<F> = F::zero_vec(count).into();
                self.written.iter().for_each(|tensor| scene.add_entries(tensor, &mut entries));
                for (row, &position) in all.chunks_mut(self.columns).zip(positions.iter()) {
                    let written = &entries[position * self.columns..];
                    row.iter_mut().zip(written).for_each(|(h, &written)| *h += written);
                }
            }
        }
        all.iter().map(|&h| E::from(h)).collect::<Vec<_>>().into()
    }
}
