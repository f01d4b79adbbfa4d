//! Choosing what the map shows, cell by cell.

use std::ops::RangeInclusive;

/// How many rounds [`crate::domain::geo::spread`] takes from these groups; `None` when they have less than `most`.
pub(in crate::store) fn rounds(groups: &[Vec<i64>], most: usize) -> Option<usize> {
    let taken_after = |rounds| groups.iter().map(|group| group.len().min(rounds)).sum::<usize>();
    let longest = groups.iter().map(Vec::len).max().unwrap_or(0);
    (0..=longest).find(|rounds| taken_after(*rounds) >= most)
}

/// Spots, as their cell's code and `ord` and in the order of codes and ids, by the grid's cells.
pub(in crate::store) fn grouped(
    cells: &[RangeInclusive<i64>],
    spots: impl IntoIterator<Item = (i64, i64)>,
) -> Vec<Vec<i64>> {
    let mut groups = vec![Vec::new(); cells.len()];
    for (code, ord) in spots {
        let after = cells.partition_point(|cell| *cell.start() <= code);
        // The grid covers the box.
        if let Some(group) = after.checked_sub(1).and_then(|at| groups.get_mut(at)) {
            group.push(ord);
        }
    }
    groups
}
