//! The clock, medians, and the lines of the output.

use serde::Serialize;
use std::{
    io::{self, Write},
    time::Instant,
};

#[expect(clippy::disallowed_methods, reason = "measuring time is what this program is for")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Writes one line of the output at once: a long run shows what it has so far.
pub(crate) fn tell(line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    io::stdout().write_all(text.as_bytes())
}

/// The middle one; of an even number the mean of the two in the middle. 0 for none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (Some(upper), 0) => f64::midpoint(*upper, values.get(half - 1).copied().unwrap_or(*upper)),
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

/// A ratio with as many digits as it can be trusted for, and some more.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
    (numerator / denominator * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(vec![3.0, 1.0, 200.0]) - 3.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 200.0]) - 3.0).abs() < f64::EPSILON);
    }
}
