//! A radix tree over byte strings: finds every stored prefix of a text in one walk along the text,
//! however many there are. Paths are walked forwards, host names backwards for suffix wildcards.

/// An immutable radix tree; each stored key has a value.
#[derive(Debug)]
pub struct PrefixTree<V> {
    /// The root is the first; it has an empty label.
    nodes: Box<[Node<V>]>,
    labels: Box<[u8]>,
    /// The first byte of each node's label, so that the children of a node stand side by side.
    branches: Box<[u8]>,
}

#[derive(Debug)]
struct Node<V> {
    label: (u32, u32),
    /// The first child's place in `nodes` and `branches`.
    children: u32,
    child_count: u16,
    value: Option<V>,
}

impl<V> PrefixTree<V> {
    /// Keys must be different from one another.
    pub fn new(mut entries: Vec<(Vec<u8>, V)>) -> Self {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut builder = Builder { nodes: Vec::new(), labels: Vec::new(), branches: Vec::new() };
        builder.nodes.push(Node { label: (0, 0), children: 0, child_count: 0, value: None });
        builder.branches.push(0);
        builder.fill(0, entries, 0);
        Self {
            nodes: builder.nodes.into(),
            labels: builder.labels.into(),
            branches: builder.branches.into(),
        }
    }

    /// Calls `found(key length, value)` for every stored key that `text` starts with, shortest first.
    pub fn walk<'a>(&'a self, text: &[u8], found: impl FnMut(usize, &'a V)) {
        self.walk_with(text.len(), |at| text[at], found);
    }

    /// As `walk`, for a text whose end is its beginning.
    pub fn walk_backwards<'a>(&'a self, text: &[u8], found: impl FnMut(usize, &'a V)) {
        self.walk_with(text.len(), |at| text[text.len() - 1 - at], found);
    }

    fn walk_with<'a>(
        &'a self,
        len: usize,
        byte: impl Fn(usize) -> u8,
        mut found: impl FnMut(usize, &'a V),
    ) {
        let mut node = &self.nodes[0];
        let mut at = 0;
        loop {
            if let Some(value) = &node.value {
                found(at, value);
            }
            if at == len {
                return;
            }
            let first = node.children as usize;
            let branches = &self.branches[first..first + usize::from(node.child_count)];
            let Some(branch) = memchr::memchr(byte(at), branches) else { return };
            node = &self.nodes[first + branch];
            let label = &self.labels[node.label.0 as usize..node.label.1 as usize];
            if len - at < label.len() || !(0..label.len()).all(|i| byte(at + i) == label[i]) {
                return;
            }
            at += label.len();
        }
    }
}

struct Builder<V> {
    nodes: Vec<Node<V>>,
    labels: Vec<u8>,
    branches: Vec<u8>,
}

impl<V> Builder<V> {
    /// Hangs the sorted `entries`, which share their first `depth` bytes, under `node`.
    fn fill(&mut self, node: usize, entries: Vec<(Vec<u8>, V)>, depth: usize) {
        let mut groups: Vec<Vec<(Vec<u8>, V)>> = Vec::new();
        for entry in entries {
            if entry.0.len() == depth {
                self.nodes[node].value = Some(entry.1);
                continue;
            }
            match groups.last_mut() {
                Some(group) if group[0].0[depth] == entry.0[depth] => group.push(entry),
                _ => groups.push(vec![entry]),
            }
        }
        let first = self.nodes.len();
        self.nodes[node].children = first as u32;
        self.nodes[node].child_count = groups.len() as u16;
        let mut ends = Vec::with_capacity(groups.len());
        for group in &groups {
            // Sorted: what the first and the last share, all share.
            let (low, high) = (&group[0].0, &group[group.len() - 1].0);
            let shared = low.iter().zip(high).take_while(|(a, b)| a == b).count();
            let start = self.labels.len() as u32;
            self.labels.extend_from_slice(&low[depth..shared]);
            let label = (start, self.labels.len() as u32);
            self.nodes.push(Node { label, children: 0, child_count: 0, value: None });
            self.branches.push(low[depth]);
            ends.push(shared);
        }
        for (i, (group, end)) in groups.into_iter().zip(ends).enumerate() {
            self.fill(first + i, group, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(tree: &PrefixTree<usize>, text: &[u8]) -> Vec<(usize, usize)> {
        let mut all = Vec::new();
        tree.walk(text, |len, value| all.push((len, *value)));
        all
    }

    #[test]
    fn every_prefix_shortest_first() {
        let keys = ["", "/", "/a", "/ab", "/abc/d", "/b"];
        let tree = PrefixTree::new(
            keys.iter().enumerate().map(|(i, key)| (key.as_bytes().to_vec(), i)).collect(),
        );
        assert_eq!(found(&tree, b"/abc"), [(0, 0), (1, 1), (2, 2), (3, 3)]);
        assert_eq!(found(&tree, b"/abc/d"), [(0, 0), (1, 1), (2, 2), (3, 3), (6, 4)]);
        assert_eq!(found(&tree, b"x"), [(0, 0)]);
        let empty = PrefixTree::<usize>::new(Vec::new());
        assert_eq!(found(&empty, b"x"), []);
    }

    proptest! {
        #[test]
        fn agrees_with_starts_with(
            keys in prop::collection::btree_set(prop::collection::vec(0u8..3, 0..6), 0..40),
            text in prop::collection::vec(0u8..3, 0..8),
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            let tree = PrefixTree::new(keys.iter().cloned().enumerate().map(|(i, k)| (k, i)).collect());
            let mut expected: Vec<_> = keys.iter().enumerate()
                .filter(|(_, key)| text.starts_with(key)).map(|(i, key)| (key.len(), i)).collect();
            expected.sort_unstable();
            prop_assert_eq!(found(&tree, &text), expected.clone());
            let mut backwards = Vec::new();
            let reversed: Vec<_> = text.iter().rev().copied().collect();
            tree.walk_backwards(&reversed, |len, value| backwards.push((len, *value)));
            prop_assert_eq!(backwards, expected);
        }
    }
}
