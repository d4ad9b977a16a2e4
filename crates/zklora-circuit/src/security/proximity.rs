//! How far from a codeword a word may be, and what that costs: the bounds of the literature on Reed-Solomon codes.
//!
//! All of them are of one form. Take an agreement α: the share of the domain on which a word must match a codeword to count as
//! close. If more than `l·E` challenges z make the curve `u_0 + z·u_1 + ... + z^l·u_l` close, then all `u_i` match codewords on
//! one common set of that density ("correlated agreement"); and no word has more than `L` codewords that close.

use serde::Serialize;

/// What a report rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// Proved, up to half the minimum distance: \[BCIKS20\] Theorems 1.2 and 1.5, `E = n`, `L = 1`.
    UniqueDecoding,
    /// Proved, up to the Johnson bound: \[BCIKS20\] Theorem 7.2, `E = max((m + 1/2)^7·n²/(3·ρ^(3/2)), (2m + 1)(n + 1)/√ρ)`.
    Johnson,
    /// Proved in 2025, up to the Johnson bound: \[BCHKS25\] Theorem 1.5,
    /// `E = (2(m + 1/2)^5 + 3(m + 1/2)(1 - α)ρ)·n/(3·ρ^(3/2)) + (m + 1/2)/√ρ`. Shown for comparison only.
    Johnson2025,
    /// Conjectured: no attack is better than twice the best construction known, see [`crate::security`].
    Conjectured,
}

impl Basis {
    /// A few words for a table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UniqueDecoding => "provable (unique decoding)",
            Self::Johnson => "provable (Johnson bound)",
            Self::Johnson2025 => "provable (Johnson bound, 2025)",
            Self::Conjectured => "conjectured (near capacity)",
        }
    }

    pub(super) const fn source(self) -> &'static str {
        match self {
            Self::UniqueDecoding => "BCIKS20 Thm 1.5, unique decoding",
            Self::Johnson => "BCIKS20 Thm 7.2",
            Self::Johnson2025 => "BCHKS25 Thm 1.5",
            Self::Conjectured => "conjecture: twice the best construction known",
        }
    }

    /// Every choice of α worth trying for a code.
    pub(super) fn choices(self, code: Code) -> Vec<Proximity> {
        let johnson = |exceptional: fn(Code, f64) -> f64| {
            (MIN_M..=MAX_M).filter_map(move |m| Proximity::johnson(code, m.into(), exceptional)).collect()
        };
        match self {
            Self::UniqueDecoding => vec![Proximity {
                agreement: (1.0 + code.opened_rate()) / 2.0,
                exceptional: (code.length() + 1.0).log2(),
                list: 0.0,
            }],
            Self::Johnson => johnson(exceptional_2020),
            Self::Johnson2025 => johnson(exceptional_2025),
            Self::Conjectured => (1..=GRID).filter_map(|i| Proximity::conjectured(code, i)).collect(),
        }
    }
}

/// The Reed-Solomon code of a circuit's oracles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Code {
    /// Logarithm of the dimension.
    pub(super) degree_bits: usize,
    /// Minus the logarithm of the rate.
    pub(super) rate_bits: usize,
}

impl Code {
    pub(super) fn dimension(self) -> f64 {
        exp2(self.degree_bits as f64)
    }

    pub(super) fn length(self) -> f64 {
        exp2((self.degree_bits + self.rate_bits) as f64)
    }

    fn rate(self) -> f64 {
        exp2(-(self.rate_bits as f64))
    }

    /// The rate of the committed polynomials themselves: FRI tests quotients `(f - v)/(X - ζ)`, so that f may have one more
    /// coefficient than the code's dimension.
    fn opened_rate(self) -> f64 {
        (self.dimension() + 1.0) / self.length()
    }
}

/// A choice of α with its `E` and `L`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proximity {
    /// α.
    pub(super) agreement: f64,
    /// log2 E.
    pub(super) exceptional: f64,
    /// log2 L.
    pub(super) list: f64,
}

impl Proximity {
    /// `α = √ρ·(1 + 1/(2m))`, and the Johnson bound on lists for any code of that distance, so for interleaved ones too:
    /// `L = 1/(2·η·√ρ')` with `η = α - √ρ'` and ρ' the rate of the committed polynomials.
    fn johnson(code: Code, m: f64, exceptional: fn(Code, f64) -> f64) -> Option<Self> {
        let agreement = code.rate().sqrt() * (1.0 + 0.5 / m);
        let opened = code.opened_rate().sqrt();
        let eta = agreement - opened;
        (eta > 0.0 && agreement < 1.0).then(|| Self {
            agreement,
            exceptional: exceptional(code, m).log2(),
            list: (0.5 / (eta * opened)).log2().max(0.0),
        })
    }

    /// `α = ρ + η`, `E = max(n², 2^(2·h(ρ)/η))`, `L = 2^(h(ρ)/η)` with the binary entropy h.
    fn conjectured(code: Code, step: u32) -> Option<Self> {
        let eta = code.rate() * f64::from(step) / f64::from(GRID) * 4.0;
        let agreement = code.rate() + eta;
        let entropy = entropy(code.rate());
        (agreement < code.rate().sqrt()).then(|| Self {
            agreement,
            exceptional: (2.0 * code.length().log2()).max(2.0 * entropy / eta),
            list: entropy / eta,
        })
    }
}

/// \[BCIKS20\] Theorem 7.2 with the weights' denominator times the length of the folded domain equal to n, as in FRI.
pub(super) fn exceptional_2020(code: Code, m: f64) -> f64 {
    let (n, rho) = (code.length(), code.rate());
    ((m + 0.5).powi(7) * n * n / (3.0 * rho.powf(1.5))).max((2.0 * m + 1.0) * (n + 1.0) / rho.sqrt())
}

/// \[BCHKS25\] Theorem 1.5.
pub(super) fn exceptional_2025(code: Code, m: f64) -> f64 {
    let (n, rho, half) = (code.length(), code.rate(), m + 0.5);
    let distance = 1.0 - rho.sqrt() * (1.0 + 0.5 / m);
    (2.0 * half.powi(5) + 3.0 * half * distance * rho) * n / (3.0 * rho.powf(1.5)) + half / rho.sqrt()
}

fn entropy(x: f64) -> f64 {
    -x * x.log2() - (1.0 - x) * (1.0 - x).log2()
}

pub(super) fn exp2(bits: f64) -> f64 {
    bits.exp2()
}

/// The theorems ask for m ≥ 3.
const MIN_M: u32 = 3;
/// Beyond this a query gains less than a thousandth of a bit.
const MAX_M: u32 = 1000;
/// Steps of η up to 4ρ.
const GRID: u32 = 1000;
