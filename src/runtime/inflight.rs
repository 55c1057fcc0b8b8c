//! Host commands at a poller: those under way, by tag, and those that wait for room, by volume.
//!
//! Waiting commands of a volume go on in the order they came, so a host sees its volume's queue
//! slow down and nothing else. Volumes do not hold up one another.

use crate::proto::command::HostTag;
use std::collections::VecDeque;

/// Host commands of type `T` (SPDK's, or anything in tests). Owned by one poller.
#[derive(Debug)]
pub struct InFlight<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    waiting: Vec<VecDeque<T>>,
    waiting_count: u32,
    waited: u64,
    /// The volume that is asked first next time, for fairness.
    turn: usize,
}

impl<T> InFlight<T> {
    /// For `volumes` volumes and about `expected` commands at once; more are taken, at the price
    /// of an allocation.
    #[must_use]
    pub fn new(volumes: usize, expected: usize) -> Self {
        Self {
            slots: Vec::with_capacity(expected),
            free: Vec::with_capacity(expected),
            waiting: (0..volumes).map(|_| VecDeque::with_capacity(64)).collect(),
            waiting_count: 0,
            waited: 0,
            turn: 0,
        }
    }

    /// Keeps a command that is under way.
    #[inline]
    pub fn insert(&mut self, command: T) -> HostTag {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(command);
                slot
            }
            None => {
                self.slots.push(Some(command));
                (self.slots.len() - 1) as u32
            }
        };
        HostTag(u64::from(slot))
    }

    /// Takes a command out to complete it. None for a tag that is not under way.
    #[inline]
    pub fn remove(&mut self, tag: HostTag) -> Option<T> {
        let command = self.slots.get_mut(tag.0 as usize)?.take();
        if command.is_some() {
            self.free.push(tag.0 as u32);
        }
        command
    }

    /// Takes out every command that is under way.
    pub fn drain(&mut self) -> Vec<T> {
        let taken: Vec<T> = self.slots.iter_mut().filter_map(Option::take).collect();
        self.free = (0..self.slots.len() as u32).rev().collect();
        taken
    }

    /// Takes out the commands under way that `which` picks. Their tags are not used again, since
    /// whoever works on them still has them.
    pub fn abandon(&mut self, which: impl Fn(&T) -> bool) -> Vec<T> {
        let slots = self.slots.iter_mut();
        slots.filter_map(|slot| slot.take_if(|command| which(command))).collect()
    }

    /// Commands under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether commands of the volume wait: a new one must wait behind them.
    #[inline]
    #[must_use]
    pub fn must_wait(&self, volume: u32) -> bool {
        self.waiting_count > 0 && !self.waiting[volume as usize].is_empty()
    }

    /// Puts a command behind those of its volume that wait.
    pub fn wait(&mut self, volume: u32, command: T) {
        self.waiting[volume as usize].push_back(command);
        self.waiting_count += 1;
        self.waited += 1;
    }

    /// Puts a command back in front after it was taken with [`Self::next_waiting`].
    pub fn wait_first(&mut self, volume: u32, command: T) {
        self.waiting[volume as usize].push_front(command);
        self.waiting_count += 1;
    }

    /// The first waiting command of a volume.
    pub fn next_waiting(&mut self, volume: u32) -> Option<T> {
        let command = self.waiting[volume as usize].pop_front()?;
        self.waiting_count -= 1;
        Some(command)
    }

    /// Volumes in the order in which they are asked this time: another one first each time.
    pub fn volumes_in_turn(&mut self) -> impl Iterator<Item = u32> + use<T> {
        let count = self.waiting.len();
        self.turn = if count == 0 { 0 } else { (self.turn + 1) % count };
        let first = self.turn;
        (0..count).map(move |step| ((first + step) % count) as u32)
    }

    /// Commands that wait now, and how many ever had to.
    #[must_use]
    pub fn waiting(&self) -> (u32, u64) {
        (self.waiting_count, self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_its_command_once() {
        let mut commands = InFlight::new(1, 4);
        let tag = commands.insert("a");
        assert_eq!(commands.remove(tag), Some("a"));
        assert_eq!(commands.remove(tag), None);
        assert!(commands.is_empty());
        assert_eq!(commands.insert("b"), tag, "slots are used again");
    }

    #[test]
    fn a_tag_of_an_abandoned_command_names_nothing_ever_after() {
        let mut commands = InFlight::new(1, 4);
        let (update, read) = (commands.insert("update"), commands.insert("read"));
        assert_eq!(commands.abandon(|command| *command == "update"), ["update"]);
        let next = commands.insert("next");
        assert!(next != update && next != read);
        assert_eq!(commands.remove(update), None);
        assert_eq!(commands.remove(read), Some("read"));
    }

    #[test]
    fn waiting_commands_of_a_volume_keep_their_order() {
        let mut commands = InFlight::new(2, 4);
        assert!(!commands.must_wait(0));
        for command in 1..=3 {
            commands.wait(0, command);
        }
        assert!(commands.must_wait(0) && !commands.must_wait(1));
        let first = commands.next_waiting(0).unwrap();
        commands.wait_first(0, first);
        let all: Vec<i32> = std::iter::from_fn(|| commands.next_waiting(0)).collect();
        assert_eq!((all, commands.waiting()), (vec![1, 2, 3], (0, 3)));
    }

    #[test]
    fn every_volume_is_asked_first_in_turn() {
        let mut commands = InFlight::<()>::new(3, 4);
        let firsts: Vec<u32> = (0..3).filter_map(|_| commands.volumes_in_turn().next()).collect();
        assert_eq!(firsts, [1, 2, 0]);
    }
}
