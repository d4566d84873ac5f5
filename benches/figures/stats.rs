//! Timing in turns, and what is made of the times.

use std::error::Error;
use std::time::{Duration, Instant};

/// One step of a way to do something.
pub type Step<'a> = Box<dyn FnMut() -> Result<(), Box<dyn Error>> + 'a>;

/// One way to do what is compared.
pub struct Way<'a> {
    /// What the table calls it.
    pub name: String,
    /// Makes the state it starts from; not timed.
    pub before: Step<'a>,
    /// What is timed.
    pub deed: Step<'a>,
}

/// The times of one way, one a round.
pub struct Sample {
    /// The way's name.
    pub name: String,
    /// In the order of the rounds.
    pub times: Vec<Duration>,
}

impl Sample {
    /// The middle one.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// The time that a share `q` (0 to 1) of the rounds was not above.
    pub fn quantile(&self, q: f64) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        // Rounds are a few dozen: the conversion is exact.
        let index = (q * last as f64).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }

    /// How many times longer this took than `other`: the median of the rounds' ratios.
    pub fn ratio(&self, other: &Sample) -> f64 {
        let mut ratios: Vec<f64> = self
            .times
            .iter()
            .zip(&other.times)
            .map(|(mine, theirs)| mine.as_secs_f64() / theirs.as_secs_f64().max(f64::MIN_POSITIVE))
            .collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Runs every way once a round, for `rounds` rounds after one that does not count, the order
/// rotating.
pub fn in_turns(rounds: usize, ways: &mut [Way<'_>]) -> Result<Vec<Sample>, Box<dyn Error>> {
    let mut samples: Vec<Sample> =
        ways.iter().map(|way| Sample { name: way.name.clone(), times: Vec::with_capacity(rounds) }).collect();
    let count = ways.len().max(1);
    for round in 0..=rounds {
        for turn in 0..ways.len() {
            let which = (round + turn) % count;
            let (Some(way), Some(sample)) = (ways.get_mut(which), samples.get_mut(which)) else { continue };
            (way.before)()?;
            let started = Instant::now();
            (way.deed)()?;
            let took = started.elapsed();
            if round > 0 {
                sample.times.push(took);
            }
        }
    }
    Ok(samples)
}
