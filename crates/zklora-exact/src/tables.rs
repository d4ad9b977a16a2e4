//! Tables of functions, computed with integers alone, so that they are the same on every machine.

/// Fraction bits of the products below.
const BITS: u32 = 62;
const ONE: u64 = 1 << BITS;

/// The table of an exponential: what stands for `2^-x` when x is counted in *ticks* of `2^-tick_bits` octaves.
///
/// `E(j) = ⌊2^(M - (2j+1)/2^(τ+1)) + 1/2⌋` for j ≥ -1 is the value in the middle of tick j, with τ = `tick_bits` and M = `unit_bits`. An
/// entry is `2^k·E(j) + (E(j-1) - E(j))`, k = `step_bits`: its low bits say how far the value would rise one tick earlier, so that
/// one sum over entries gives a row's total at a shift C and at C - 1.
#[derive(Debug, Clone)]
pub struct ExpTable {
    entries: Vec<u64>,
    /// k.
    pub step_bits: u32,
    /// τ.
    pub tick_bits: u32,
    /// B = E(-1) - 1: the most that a row's values may add up to.
    pub budget: u64,
}

impl ExpTable {
    /// The table for indices below `2^index_bits`.
    pub fn new(tick_bits: u32, unit_bits: u32, step_bits: u32, index_bits: u32) -> Self {
        let roots = roots_of_two(tick_bits + 1);
        let value = |j: i64| {
            let exponent = (i64::from(unit_bits) << (tick_bits + 1)) - (2 * j + 1);
            power_of_two(&roots, tick_bits + 1, exponent)
        };
        let mut entries = Vec::with_capacity(1 << index_bits);
        let budget = value(-1) - 1;
        let mut before = value(-1);
        for j in 0..1i64 << index_bits {
            let now = value(j);
            entries.push((now << step_bits) + (before - now));
            before = now;
        }
        Self { entries, step_bits, tick_bits, budget }
    }

    /// The entry of so many ticks; `None` beyond the table's end.
    pub fn get(&self, ticks: u64) -> Option<u64> {
        self.entries.get(usize::try_from(ticks).ok()?).copied()
    }

    /// All entries.
    pub fn entries(&self) -> &[u64] {
        &self.entries
    }
}

/// GELU in its tanh form for inputs of 16 bits: `⌊gelu(x·2^-in_bits)·2^out_bits + 1/2⌋` for x from -2^15.
///
/// `gelu(x) = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks and Gimpel, "Gaussian error linear units", 2016), which is
/// `x / (1 + 2^-t)` with `t = 2·√(2/π)·log2(e)·(x + 0.044715·x³)`; and `gelu(-x) = gelu(x) - x`.
pub fn gelu(in_bits: u32, out_bits: u32) -> Vec<i32> {
    // 2·√(2/π)·log2(e) = 2.30220819814432488..., with 60 fraction bits.
    const FACTOR: u128 = 2_654_265_339_722_773_143;
    // Binary digits of t that are kept.
    const T_BITS: u32 = 40;
    let roots = roots_of_two(T_BITS);
    let mut positive = Vec::with_capacity((1 << 15) + 1);
    for x in 0..=1u128 << 15 {
        // (x + 0.044715·x³)·10^6·2^(3·in_bits), below 2^61 with in_bits = 10.
        let cubic = x * 1_000_000 * (1 << (2 * in_bits)) + 44_715 * x * x * x;
        let t = (FACTOR * cubic / (1_000_000 << (60 - T_BITS))) >> (3 * in_bits);
        let (octaves, fraction) = ((t >> T_BITS) as u64, (t & ((1 << T_BITS) - 1)) as i64);
        // 2^-t with 62 fraction bits: 2^(1 - fraction) halved as often as the octaves and that 1 say.
        let below = power(&roots, T_BITS, (1 << T_BITS) - fraction);
        let tail = u128::from(if octaves >= 62 { 0 } else { below >> (octaves + 1) });
        let (one, scaled) = (u128::from(ONE), x << out_bits);
        // ⌊y + 1/2⌋ of y = x·2^(out - in) / (1 + 2^-t).
        let divisor = (one + tail) << (in_bits + 1);
        positive.push((((scaled * one) << 1) + (divisor >> 1)) / divisor);
    }
    (-(1i64 << 15)..1 << 15)
        .map(|x| {
            let magnitude = positive[x.unsigned_abs() as usize] as i64;
            // The shift by x is a whole number of units, as out_bits is at least in_bits.
            (if x < 0 { magnitude + (x << (out_bits - in_bits)) } else { magnitude }) as i32
        })
        .collect()
}

/// `2^(2^-i)` for i = 0 … bits, with 62 fraction bits, each the root of the one before, rounded down.
fn roots_of_two(bits: u32) -> Vec<u64> {
    let mut roots = vec![2 * ONE];
    for _ in 0..bits {
        let last = u128::from(roots[roots.len() - 1]);
        // At most 2^63·2^62.
        roots.push((last << BITS).isqrt() as u64);
    }
    roots
}

/// `2^(fraction / 2^bits)` with 62 fraction bits, for a fraction from 0 to 2^bits. Off by less than 2^-55.
fn power(roots: &[u64], bits: u32, fraction: i64) -> u64 {
    let mut product = ONE;
    for i in 0..=bits {
        if fraction >> (bits - i) & 1 == 1 {
            product = ((u128::from(product) * u128::from(roots[i as usize])) >> BITS) as u64;
        }
    }
    product
}

/// `⌊2^(exponent / 2^bits) + 1/2⌋`, for a value below 2^32.
fn power_of_two(roots: &[u64], bits: u32, exponent: i64) -> u64 {
    let whole = exponent >> bits;
    if whole < -1 {
        return 0;
    }
    let mantissa = power(roots, bits, exponent & ((1 << bits) - 1));
    // Below 2^63; half a unit is added in the mantissa's own units.
    let shift = BITS as i64 - whole;
    ((u128::from(mantissa) + (1 << (shift - 1))) >> shift) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_specification() {
        // tick, unit, step bits; B, the first three entries, the last index with a value, the sum of all.
        let cases = [
            ((9, 15, 7), 32789, [4191532, 4185900, 4180141], 8191, 3098162838),
            ((9, 14, 8), 16394, [4191510, 4185878, 4180246], 7679, 3098114827),
            ((9, 13, 9), 8197, [4191244, 4185611, 4179979], 7167, 3098041350),
            ((9, 12, 10), 4098, [4191238, 4186117, 4179974], 6655, 3097907203),
            ((9, 11, 11), 2048, [4192258, 4186115, 4179971], 6143, 3097643009),
            (
                (9, 28, 20),
                268617221,
                [281284510583697, 280903964527013, 280523933321146],
                14847,
                207914251272242694,
            ),
        ];
        for ((tick, unit, step), budget, first, last, sum) in cases {
            let table = ExpTable::new(tick, unit, step, 16);
            assert_eq!(table.budget, budget);
            assert_eq!(table.entries()[..3], first);
            assert_eq!(table.entries().iter().rposition(|entry| entry >> step > 0), Some(last));
            assert_eq!(table.entries().iter().sum::<u64>(), sum, "{tick} {unit} {step}");
            assert_eq!(table.get(1 << 16), None);
        }
    }

    #[test]
    fn no_entry_is_near_a_tie() {
        // What is computed is off by less than 2^-27: no other machine or method rounds otherwise.
        for (tick, unit) in [(9, 15), (9, 14), (9, 13), (9, 12), (9, 11), (9, 28)] {
            let roots = roots_of_two(tick + 1);
            for j in -1..1i64 << 16 {
                let exponent = (unit << (tick + 1)) - (2 * j + 1);
                let whole = exponent >> (tick + 1);
                if whole < -1 {
                    break;
                }
                let shift = BITS as i64 - whole;
                let fraction = i128::from(power(&roots, tick + 1, exponent & ((1 << (tick + 1)) - 1)))
                    & ((1 << shift) - 1);
                let distance = (fraction - (1 << (shift - 1))).abs();
                assert!(distance > 1 << (shift - 25).max(6), "tick {tick}, unit {unit}, j {j}");
            }
        }
    }

    #[test]
    fn gelu_is_that_of_the_specification() {
        let table = gelu(10, 11);
        assert_eq!(table.len(), 1 << 16);
        assert_eq!((table.iter().min(), table.iter().max()), (Some(&-348), Some(&65534)));
        assert_eq!(table.iter().map(|&g| i64::from(g)).sum::<i64>(), 1072662344);
        assert_eq!(table.iter().map(|&g| i64::from(g) * i64::from(g)).sum::<i64>(), 46908343760340);
        for (index, &entry) in table.iter().enumerate() {
            let x = (index as f64 - 32768.0) / 1024.0;
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let float = 0.5 * x * (1.0 + inner.tanh()) * 2048.0;
            assert!((float - f64::from(entry)).abs() < 0.5001, "{x}: {float} {entry}");
        }
    }
}
