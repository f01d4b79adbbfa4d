//! The slot of a key: one of a fixed number, which never changes.
//!
//! The publisher names the slot of an event's key as a second routing key (in the header `CC`, which RabbitMQ uses like
//! the first one). Each queue's `slots` exchange distributes the slots over its shards. The result does not depend on
//! the order of declarations or restarts, so a key's events always go to the same shard.

/// The number of slots. Publishers and the bindings of queues depend on it: never change it.
pub(super) const SLOTS: usize = 256;

/// One word, so that only the topic pattern `*` (which is refused) could take it for an event type.
const PREFIX: &str = "slot-";

/// The slot of an ordering key: FNV-1a over its bytes, folded to eight bits. The same in every version and on every
/// machine.
pub(super) fn slot(key: &str) -> usize {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits alone hash similar keys badly.
    let folded = hash ^ (hash >> 32);
    let folded = folded ^ (folded >> 16);
    usize::try_from((folded ^ (folded >> 8)) & 0xff).unwrap_or_default()
}

/// The routing key of a slot.
pub(super) fn routing_key(slot: usize) -> String {
    format!("{PREFIX}{slot}")
}

/// Whether a binding with this pattern would match slots as types.
pub(super) fn is_mistaken_for_a_type(pattern: &str) -> bool {
    pattern == "*" || pattern.starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::TopicPattern;

    #[test]
    fn a_key_has_its_slot_for_ever() {
        // Values of the first release: other numbers would break the order of keys on running meshes.
        let known =
            [("", 225), ("a", 187), ("user1", 201), ("anon:abcdefgh", 118), ("01890a5d-ac96", 167)];
        assert_eq!(known.map(|(key, _)| slot(key)), known.map(|(_, slot)| slot));
    }

    #[test]
    fn keys_that_are_alike_spread() {
        let mut counts = [0_u32; SLOTS];
        for n in 0..25_600 {
            counts[slot(&format!("user{n}"))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= 50 && *most <= 160, "{least} to {most} of 100");
    }

    #[test]
    fn no_pattern_over_types_takes_a_slot_for_one() {
        for pattern in ["user.#", "user.*", "*.delete", "*.*", "#.delete", "tourSpot.upsert"] {
            let takes = TopicPattern::new(pattern).matches(&routing_key(17));
            assert!(!takes && !is_mistaken_for_a_type(pattern), "{pattern}");
        }
        assert!(is_mistaken_for_a_type("*") && is_mistaken_for_a_type(&routing_key(3)));
    }
}
