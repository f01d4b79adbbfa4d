//! Histograms whose values are read when Prometheus scrapes.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::histogram::Histogram;

/// The values of a histogram.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HistogramReading {
    /// The count of each bucket alone, not cumulative. Values above the last bucket are not in it.
    pub buckets: Vec<u64>,
    /// The count of all values.
    pub count: u64,
    /// The sum of all values.
    pub sum: f64,
}

type HistogramReadings = Vec<(Vec<(&'static str, String)>, HistogramReading)>;

pub(super) struct ReadHistograms {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// Upper bounds of the buckets.
    pub(super) bounds: Vec<f64>,
    pub(super) read: Box<dyn Fn() -> HistogramReadings + Send + Sync>,
}

impl fmt::Debug for ReadHistograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadHistograms").field(&self.name).finish()
    }
}

impl Collector for ReadHistograms {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let readings = (self.read)();
        if readings.is_empty() {
            return Ok(());
        }
        let kind = Histogram::new(std::iter::empty()).metric_type();
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for (labels, HistogramReading { buckets, count, sum }) in readings {
            let within: u64 = buckets.iter().sum();
            let mut buckets: Vec<(f64, u64)> = self.bounds.iter().copied().zip(buckets).collect();
            buckets.push((f64::INFINITY, count.saturating_sub(within)));
            metric
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}
