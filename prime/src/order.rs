//! The order of a finite training set: epoch by epoch, fixed by the seed, without any state.

use std::sync::Mutex;

use prime_runtime::random::{Generator as Random, Stream};

use crate::tasks::Share;

/// Shuffles of epochs are numbered from here, apart from those of minibatches.
const EPOCHS: u64 = 1 << 32;
/// Those of a share that is drawn in a proportion of its own, from here.
const SHARES: u64 = 2 << 40;

/// The problems of shares, one epoch after the other.
pub struct Order {
    shares: Vec<Share>,
    /// The epoch that was asked for last: its seed, its number, its problems.
    cached: Mutex<Option<(u64, u64, Vec<u32>)>>,
}

impl Order {
    /// An order of these shares.
    pub fn new(shares: Vec<Share>) -> Order {
        Order { shares, cached: Mutex::new(None) }
    }

    /// Draws of an epoch.
    pub fn epoch(&self) -> u64 {
        self.shares.iter().map(|share| share.draws).sum()
    }

    /// The problem at a place. Without any, it is problem 0, which is not there either and says so when it is asked for.
    pub fn index(&self, place: u64, seed: u64) -> u64 {
        let length = self.epoch();
        if length == 0 {
            return 0;
        }
        let (epoch, offset) = (place / length, place % length);
        let mut cached = self.cached.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*cached {
            Some((of_seed, of_epoch, indices)) if (*of_seed, *of_epoch) == (seed, epoch) => {
                u64::from(indices[offset as usize])
            }
            _ => {
                let indices = self.indices(epoch, seed);
                let index = u64::from(indices[offset as usize]);
                *cached = Some((seed, epoch, indices));
                index
            }
        }
    }

    /// The problems of an epoch: those of each share that are due, shuffled together.
    fn indices(&self, epoch: u64, seed: u64) -> Vec<u32> {
        let mut indices = Vec::new();
        for (number, share) in self.shares.iter().enumerate() {
            let count = share.problems.end - share.problems.start;
            if share.draws == count {
                indices.extend(share.problems.clone().map(|index| index as u32));
                continue;
            }
            // Draws of a share are numbered over the whole run, and go through its problems round by round.
            let mut round: Option<(u64, Vec<u32>)> = None;
            for draw in epoch * share.draws..(epoch + 1) * share.draws {
                let (number_of_round, place) = (draw / count, draw % count);
                if round.as_ref().is_none_or(|(of, _)| *of != number_of_round) {
                    let mut order: Vec<u32> =
                        share.problems.clone().map(|index| index as u32).collect();
                    let sequence = SHARES + ((number as u64) << 40) + number_of_round;
                    Random::new(seed, Stream::Shuffle, sequence).shuffle(&mut order);
                    round = Some((number_of_round, order));
                }
                indices.extend(round.as_ref().map(|(_, order)| order[place as usize]));
            }
        }
        Random::new(seed, Stream::Shuffle, EPOCHS + epoch).shuffle(&mut indices);
        indices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(problems: std::ops::Range<u64>, draws: u64) -> Share {
        Share { problems, draws }
    }

    fn first(order: &Order, seed: u64, count: u64) -> Vec<u64> {
        (0..count).map(|place| order.index(place, seed)).collect()
    }

    #[test]
    fn every_problem_comes_once_an_epoch_in_an_order_of_its_own() {
        let order = Order::new(vec![share(0..4, 4), share(7..10, 3)]);
        let places = first(&order, 1, 21);
        let mut orders = std::collections::HashSet::new();
        for epoch in places.chunks(7) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 7, 8, 9]);
            orders.insert(epoch.to_vec());
        }
        assert_eq!(orders.len(), 3);
        assert_ne!(places, first(&order, 2, 21));
        // Any place may be asked for at any time.
        for place in [20, 3, 11, 0] {
            assert_eq!(order.index(place, 1), places[place as usize]);
        }
    }

    #[test]
    fn weighted_shares_keep_their_proportion_and_go_through_their_problems_in_turn() {
        // 8 of 10 draws go to the 3 problems of the first share, 2 to the 7 of the second.
        let order = Order::new(vec![share(0..3, 8), share(3..10, 2)]);
        let mut counts = [0u64; 10];
        for (place, index) in first(&order, 5, 10 * 21).into_iter().enumerate() {
            counts[index as usize] += 1;
            if (place + 1) % 10 == 0 {
                let epochs = (place as u64 + 1) / 10;
                assert_eq!(counts[..3].iter().sum::<u64>(), 8 * epochs);
                assert_eq!(counts[3..].iter().sum::<u64>(), 2 * epochs);
                for part in [&counts[..3], &counts[3..]] {
                    let (least, most) = (part.iter().min().unwrap(), part.iter().max().unwrap());
                    assert!(most - least <= 1, "{counts:?}");
                }
            }
        }
        assert_eq!(counts, [56, 56, 56, 6, 6, 6, 6, 6, 6, 6]);
    }

    #[test]
    fn an_order_of_nothing_asks_for_a_problem_that_is_not_there() {
        assert_eq!(Order::new(Vec::new()).index(5, 1), 0);
    }
}
