//! Names of queues: from their paths, and in a narrow column.

use std::collections::BTreeSet;
use std::path::Path;

/// A queue's path from the root that was searched. A root that is itself a queue has the name of its directory.
pub(crate) fn name_below(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    if !relative.as_os_str().is_empty() {
        return relative.display().to_string();
    }
    let whole = path.canonicalize();
    let named = path.file_name().or_else(|| whole.as_ref().ok()?.file_name());
    named.map_or_else(|| ".".to_owned(), |name| Path::new(name).display().to_string())
}

/// Each name in at most `width` columns. Directories that all names begin with become `..`; names that are still too
/// long lose the part without which the fewest of them look alike.
pub(crate) fn shortened(names: &[&str], width: usize) -> Vec<String> {
    if names.iter().all(|name| len(name) <= width) {
        return names.iter().map(|name| (*name).to_owned()).collect();
    }
    let common = common_directories(names);
    let short: Vec<String> = names
        .iter()
        .map(|name| if common > 0 { format!("..{}", &name[common - 1..]) } else { (*name).to_owned() })
        .collect();
    // Cut in the middle, at the beginning, at the end.
    let cuts = [width / 3, 0, width / 2, width.saturating_sub(2)];
    let cut = |head: usize| short.iter().map(|name| cut(name, head, width)).collect::<Vec<_>>();
    let distinct = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len();
    // The first of the best.
    cuts.into_iter().map(cut).rev().max_by_key(distinct).unwrap_or_default()
}

/// Bytes of the directories that all names begin with, their last slash included.
fn common_directories(names: &[&str]) -> usize {
    let [first, others @ ..] = names else { return 0 };
    let ends = first.match_indices('/').map(|(at, _)| at + 1);
    ends.take_while(|end| others.iter().all(|other| other.starts_with(&first[..*end]))).last().unwrap_or(0)
}

/// Keeps `head` characters and the end.
fn cut(name: &str, head: usize, width: usize) -> String {
    let count = len(name);
    if count <= width {
        return name.to_owned();
    }
    let tail = width.saturating_sub(head + 2);
    let text = name.chars().take(head).chain("..".chars()).chain(name.chars().skip(count - tail));
    text.take(width).collect()
}

fn len(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_kept() {
        let names =
            ["orders/queue/momentum/orders_out", "orders/queue/momentum/orders_in", "orders/queue/pairs/orders_out"];
        assert_eq!(shortened(&names, 40), names);
        let expected = ["../momentum/orders_out", "../momentum/orders_in", "../pairs/orders_out"];
        assert_eq!(shortened(&names, 22), expected);
        for width in 8..22 {
            let short = shortened(&names, width);
            assert!(short.iter().all(|name| len(name) <= width), "{short:?}");
            let distinct = short.iter().collect::<BTreeSet<_>>().len();
            assert!(width < 15 || distinct == 3, "{width}: {short:?}");
        }
        // Each differs from the others at another end.
        assert_eq!(shortened(&["alpha-0000000000-x", "alpha-0000000000-y"], 10), ["alp..000-x", "alp..000-y"]);
        assert_eq!(shortened(&["a-0000000000000000", "b-0000000000000000"], 10), ["a-0..00000", "b-0..00000"]);
        assert_eq!(shortened(&["eu/ticks", "us/ticks"], 20), ["eu/ticks", "us/ticks"]);
    }

    #[test]
    fn nothing_is_wider_than_the_column() {
        for width in 0..12 {
            for name in shortened(&["äöü/日本語/😀😀😀😀😀😀", "", "äöü/x", "a"], width) {
                assert!(len(&name) <= width, "{width}: {name}");
            }
        }
        assert!(shortened(&[], 5).is_empty());
    }
}
