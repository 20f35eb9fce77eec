//! Counts of figures by how large they are: a histogram that any thread adds to with two atomics, where the library's has a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// What a [`Spread`] tells apart.
#[derive(Debug)]
pub struct Scale {
    /// Upper bounds, growing, as they are shown.
    pub bounds: &'static [u64],
    /// So much of what is added makes one of what is shown.
    pub unit: u64,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Spread {
    scale: &'static Scale,
    /// For each bound what is not above it, and above the bound before; at last what is above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Spread {
    /// With nothing in it.
    pub fn new(scale: &'static Scale) -> Self {
        let counts = (0..=scale.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { scale, counts, sum: AtomicU64::new(0) }
    }

    /// `times` figures of `value` each.
    pub fn add(&self, value: u64, times: u64) {
        let at = self.scale.bounds.partition_point(|bound| bound * self.scale.unit < value);
        self.counts[at].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add(value.saturating_mul(times), Ordering::Relaxed);
    }

    /// All that `other`, of the same scale, has.
    pub fn add_all(&self, other: &Self) {
        for (own, more) in self.counts.iter().zip(&other.counts) {
            own.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.sum.fetch_add(other.sum.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Clone for Spread {
    fn clone(&self) -> Self {
        let copy = Self::new(self.scale);
        copy.add_all(self);
        copy
    }
}

impl TypedMetric for Spread {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Spread {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = self.scale.bounds.iter().map(|bound| *bound as f64).chain([f64::MAX]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Ordering::Relaxed) as f64 / self.scale.unit as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    static SCALE: Scale = Scale { bounds: &[1, 10], unit: 1000 };

    #[test]
    fn figures_are_shown_below_the_first_bound_that_they_do_not_exceed() {
        let one = Spread::new(&SCALE);
        for (value, times) in [(0, 1), (1000, 2), (1001, 1), (10_001, 3)] {
            one.add(value, times);
        }
        let all = one.clone();
        all.add(10_000, 1);
        let (mut registry, mut text) = (Registry::default(), String::new());
        registry.register("took", "How long", all);
        encode(&mut text, &registry).unwrap();
        let shown: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected =
            ["took_sum 43.004", "took_count 8", "took_bucket{le=\"1.0\"} 3", "took_bucket{le=\"10.0\"} 5"];
        assert_eq!(shown[..4], expected);
        assert_eq!(shown[4..], ["took_bucket{le=\"+Inf\"} 8"]);
    }
}
