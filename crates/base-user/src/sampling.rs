//! Choosing the next token.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Draws tokens by their logits; the same seed draws the same tokens from the same logits.
#[derive(Debug)]
pub struct Sampler {
    temperature: f64,
    top_k: Option<usize>,
    top_p: f64,
    rng: StdRng,
}

impl Sampler {
    /// Logits are divided by `temperature`; at 0 the largest is taken. Of the tokens, the `top_k` likeliest remain, and of those
    /// the likeliest that have a probability of at least `top_p` together (Holtzman et al., arXiv 1904.09751).
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: f64, seed: u64) -> Self {
        Self { temperature, top_k, top_p, rng: StdRng::seed_from_u64(seed) }
    }

    /// The place of the token that is drawn. There must be at least one logit. Of equal ones the first is likelier.
    pub fn sample(&mut self, logits: &[f32]) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        // A stable sort: of equal logits the first comes first.
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if self.temperature <= 0.0 {
            return order[0];
        }
        order.truncate(self.top_k.unwrap_or(usize::MAX).max(1));
        let largest = f64::from(logits[order[0]]);
        let weights: Vec<f64> = order
            .iter()
            .map(|&token| ((f64::from(logits[token]) - largest) / self.temperature).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let mut count = 0;
        for weight in &weights {
            kept += weight;
            count += 1;
            if kept >= self.top_p * sum {
                break;
            }
        }
        let mut point = self.rng.random_range(0.0..1.0) * kept;
        for (token, weight) in order.iter().zip(&weights[..count]) {
            point -= weight;
            if point < 0.0 {
                return *token;
            }
        }
        // Rounding left a little over.
        order[count - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [0.0, 2.0, 1.0, 2.0];

    fn drawn(sampler: &mut Sampler, count: usize) -> [usize; 4] {
        let mut counts = [0; 4];
        (0..count).for_each(|_| counts[sampler.sample(&LOGITS)] += 1);
        counts
    }

    #[test]
    fn without_temperature_the_first_of_the_largest_is_taken() {
        assert_eq!(drawn(&mut Sampler::new(0.0, None, 1.0, 1), 10), [0, 10, 0, 0]);
    }

    #[test]
    fn tokens_come_as_often_as_their_probabilities_say() {
        let counts = drawn(&mut Sampler::new(1.0, None, 1.0, 1), 20_000);
        let weights = LOGITS.map(|logit| f64::from(logit).exp());
        let sum: f64 = weights.iter().sum();
        for (count, weight) in counts.into_iter().zip(weights) {
            let expected = 20_000.0 * weight / sum;
            assert!((count as f64 - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}");
        }
    }

    #[test]
    fn only_the_likeliest_remain() {
        let [a, b, c, d] = drawn(&mut Sampler::new(1.0, Some(3), 1.0, 1), 2000);
        assert!(a == 0 && b > 0 && c > 0 && d > 0);
        // The two likeliest have 0.799 of the probability.
        let [a, b, c, d] = drawn(&mut Sampler::new(1.0, None, 0.79, 1), 2000);
        assert!(a == 0 && c == 0 && b > 0 && d > 0);
        assert_eq!(drawn(&mut Sampler::new(1.0, Some(1), 1.0, 1), 10), [0, 10, 0, 0]);
        assert_eq!(drawn(&mut Sampler::new(1.0, None, 0.0, 1), 10), [0, 10, 0, 0]);
    }

    #[test]
    fn the_seed_decides() {
        let tokens = |seed| {
            let mut sampler = Sampler::new(1.5, None, 1.0, seed);
            (0..50).map(|_| sampler.sample(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(tokens(7), tokens(7));
        assert_ne!(tokens(7), tokens(8));
    }
}
