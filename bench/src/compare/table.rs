//! The table of a comparison.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use super::{cluster::Store, rows::Measured};

/// A quantity of a load that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    PerSecond,
    MedianUs,
    P99Us,
    CpuUs,
    PeakMib,
    Mib,
    Ms,
    /// Of what it was with fewer keys.
    PercentOfFew,
    MibPerSecond,
    /// The 99th percentile of writes meanwhile, beside what it was before.
    TimesUndisturbed,
}

impl Quantity {
    fn digits(self) -> usize {
        if self == Self::TimesUndisturbed { 2 } else { 0 }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::PerSecond => "a second",
            Self::MedianUs => "µs, median",
            Self::P99Us => "µs, p99",
            Self::CpuUs => "µs of processor time each, all members",
            Self::PeakMib => "MiB at most, all members",
            Self::Mib => "MiB, all members",
            Self::Ms => "ms until all members serve",
            Self::PercentOfFew => "% of that with 100,000 keys",
            Self::MibPerSecond => "MiB a second until it serves",
            Self::TimesUndisturbed => "times the p99 of puts before",
        }
    }
}

/// Values of both stores, by load and quantity.
#[derive(Debug)]
pub struct Table {
    versions: [String; 2],
    /// In the order in which they were first measured.
    rows: Vec<(String, Quantity)>,
    values: BTreeMap<(String, Quantity), [Vec<f64>; 2]>,
}

impl Table {
    /// One without values, of these versions.
    pub fn new(versions: [String; 2]) -> Self {
        Self { versions, rows: Vec::new(), values: BTreeMap::new() }
    }

    /// Adds what a round measured.
    pub fn add(&mut self, store: Store, measured: &Measured) {
        let figures = &measured.report.figures;
        for (quantity, value) in [
            (Quantity::PerSecond, figures.per_second),
            (Quantity::MedianUs, figures.latency_us.p50),
            (Quantity::P99Us, figures.latency_us.p99),
            (Quantity::CpuUs, measured.cpu_per_operation.as_secs_f64() * 1e6),
        ] {
            self.add_value(store, measured.name, quantity, value);
        }
    }

    /// Adds the most memory that a round's members had, in bytes.
    pub fn add_memory(&mut self, store: Store, bytes: u64) {
        self.add_value(store, "memory", Quantity::PeakMib, mib(bytes));
    }

    /// Adds one value of a round.
    pub fn add_value(&mut self, store: Store, name: &str, quantity: Quantity, value: f64) {
        let row = (name.to_owned(), quantity);
        if !self.rows.contains(&row) {
            self.rows.push(row.clone());
        }
        let [metastore, etcd] = self.values.entry(row).or_default();
        match store {
            Store::Metastore => metastore.push(value),
            Store::Etcd => etcd.push(value),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [metastore, etcd] = &self.versions;
        writeln!(f, "| load | quantity | {metastore} | {etcd} | ratio |")?;
        write!(f, "|---|---|--:|--:|--:|")?;
        for row in &self.rows {
            let Some([metastore, etcd]) = self.values.get(row) else { continue };
            let (name, quantity) = (&row.0, row.1.unit());
            let (metastore, etcd) = (median(metastore), median(etcd));
            let ratio = metastore.zip(etcd).map(|(metastore, etcd)| metastore / etcd);
            let cell = |value: Option<f64>, digits| {
                let mut text = String::new();
                // Cannot fail: the target is a string.
                let _ = value.map(|value| write!(text, "{value:.digits$}"));
                text
            };
            write!(
                f,
                "\n| {name} | {quantity} | {} | {} | {} |",
                cell(metastore, row.1.digits()),
                cell(etcd, row.1.digits()),
                cell(ratio, 2)
            )?;
        }
        Ok(())
    }
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values.get(middle).copied(),
        _ => Some((values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_compared_in_the_order_of_the_loads() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        let mut table = Table::new(["metastore 1".into(), "etcd 3".into()]);
        for value in [30.0, 90.0, 40.0] {
            table.add_value(Store::Metastore, "put", Quantity::PerSecond, value);
        }
        table.add_value(Store::Etcd, "put", Quantity::PerSecond, 10.0);
        table.add_value(Store::Metastore, "list", Quantity::P99Us, 1.0);
        let expected = "\
            | load | quantity | metastore 1 | etcd 3 | ratio |\n\
            |---|---|--:|--:|--:|\n\
            | put | a second | 40 | 10 | 4.00 |\n\
            | list | µs, p99 | 1 |  |  |";
        assert_eq!(table.to_string(), expected);
    }
}
