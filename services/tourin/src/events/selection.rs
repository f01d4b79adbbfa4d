//! The ids that an operator gives.

use std::io::Read;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;

/// Maximum number of ids per command, so that a mistake stays small.
const MAX_IDS: usize = 10_000;
/// Maximum size of a list (bytes): a line of a listing has about 200.
const MAX_LIST_BYTES: u64 = 8 << 20;

/// The selected events.
#[derive(Debug, Clone, Args)]
pub struct Selection {
    /// The events' ids, as `list` shows them at the beginning of its lines
    #[arg(value_name = "ID", required_unless_present = "from")]
    pub ids: Vec<String>,
    /// File whose lines begin with the ids, such as the output of `list`; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "ids")]
    pub from: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl Selection {
    /// The ids, each once, in the order given.
    ///
    /// # Errors
    /// When the file cannot be read, a line does not begin with an id, or there are none or too many.
    pub fn ids<T: FromStr + PartialEq>(&self, what: &str) -> anyhow::Result<Vec<T>> {
        let text = match self.from.as_deref() {
            Some("-") => read(std::io::stdin().lock()).context("cannot read standard input")?,
            Some(path) => std::fs::File::open(path)
                .and_then(read)
                .with_context(|| format!("cannot read --from {path}"))?,
            None => self.ids.join("\n"),
        };
        let mut set: Vec<T> = Vec::new();
        for word in text.lines().filter_map(|line| line.split_whitespace().next()) {
            let id = word.parse().ok().with_context(|| {
                format!("'{word}' is not {what}; lines must begin with one, as those of `list` do")
            })?;
            if !set.contains(&id) {
                set.push(id);
            }
            if set.len() > MAX_IDS {
                bail!("more than {MAX_IDS} events are named; do it in parts");
            }
        }
        if set.is_empty() {
            bail!("no event is named");
        }
        Ok(set)
    }
}

fn read(source: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(MAX_LIST_BYTES + 1).read_to_string(&mut text)?;
    // A cut line could be another id.
    if text.len() as u64 > MAX_LIST_BYTES {
        return Err(std::io::Error::other(format!("it has more than {MAX_LIST_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Selection {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Selection { ids, from: None, dry_run: false }
    }

    #[test]
    fn a_set_is_each_id_once_in_the_order_given() {
        assert_eq!(ids(&["7", "3", "7"]).ids::<u64>("a number").unwrap(), [7, 3]);
        let wrong = ids(&["7", "x"]).ids::<u64>("a number").unwrap_err().to_string();
        assert!(wrong.contains("'x' is not a number"), "{wrong}");
    }

    #[test]
    fn a_listing_names_its_first_column() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12  user.viewTourspot  member1\n\n13  user.delete  member2\n")
            .unwrap();
        let from = Some(file.path().display().to_string());
        let selection = Selection { ids: Vec::new(), from, dry_run: true };
        assert_eq!(selection.ids::<u64>("a number").unwrap(), [12, 13]);
        std::fs::write(file.path(), "\n").unwrap();
        assert!(selection.ids::<u64>("a number").unwrap_err().to_string().contains("no event"));
    }
}
