//! What groups of goroutines keep alive: heap objects to which their stacks still point.
//!
//! Conservative, as a word of a stack may look like an address by chance or belong to a variable
//! that is dead; and direct references only: what those objects refer to is not followed.

use std::collections::HashMap;

/// A live object that a sampler has taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveSample {
    /// Its address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of live objects that it stands for.
    pub weight_bytes: f64,
    /// The number of its site, if leaktrace has sampled it itself.
    pub own_site: Option<u32>,
}

/// Which sampled objects each group's stacks point to.
pub struct Pins {
    samples: Vec<LiveSample>,
    /// By sample: the groups, and each once.
    found: HashMap<usize, Vec<u32>>,
}

impl Pins {
    /// Looks for these objects.
    pub fn new(mut samples: Vec<LiveSample>) -> Self {
        samples.sort_unstable_by_key(|sample| sample.address);
        Self {
            samples,
            found: HashMap::new(),
        }
    }

    /// Takes in the live words of a stack of `group`.
    pub fn stack(&mut self, group: u32, words: &[u8]) {
        for word in words.chunks_exact(8) {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            let Some(sample) = self.sample_at(word) else {
                continue;
            };
            let groups = self.found.entry(sample).or_default();
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
    }

    /// For each group that points to any: number of sampled objects, and the bytes that they stand
    /// for. An object to which several groups point counts for each of them.
    pub fn by_group(&self) -> HashMap<u32, (u64, f64)> {
        let mut sums: HashMap<u32, (u64, f64)> = HashMap::new();
        for (sample, groups) in &self.found {
            let weight = self.samples.get(*sample).map_or(0.0, |s| s.weight_bytes);
            for group in groups {
                let sum = sums.entry(*group).or_default();
                *sum = (sum.0 + 1, sum.1 + weight);
            }
        }
        sums
    }

    /// The object in which an address lies.
    fn sample_at(&self, address: u64) -> Option<usize> {
        let index = self.samples.partition_point(|s| s.address <= address);
        let index = index.checked_sub(1)?;
        let sample = self.samples.get(index)?;
        (address - sample.address < sample.size).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_into_an_object_count_once_a_group() {
        let sample = |address, size| LiveSample {
            address,
            size,
            weight_bytes: 1000.0,
            own_site: None,
        };
        let mut pins = Pins::new(vec![sample(0x3000, 16), sample(0x1000, 64)]);
        let stack =
            |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
        pins.stack(7, &stack(&[0xfff, 0x1000, 0x103f, 0x1040, 0x3008]));
        pins.stack(8, &stack(&[0x1010, 0, u64::MAX]));
        pins.stack(9, &stack(&[0x3010]));
        let found = pins.by_group();
        assert_eq!(found.get(&7), Some(&(2, 2000.0)));
        assert_eq!(found.get(&8), Some(&(1, 1000.0)));
        assert_eq!(found.get(&9), None);
    }
}
