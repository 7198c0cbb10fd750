//! Between the host and the device of a model: lists that the host fills and kernels read, and numbers that come back.

use std::borrow::Cow;

use prime_runtime::{Device, Element, Tensor, View, ViewMut};

use crate::{Error, Result};

/// Every list of an [`Upload`] begins on such a boundary of elements: a cache line of four-byte numbers.
const BOUNDARY: usize = 16;

/// Lists that the host fills anew for every step, and that kernels read. On the host they are read where they are; on a device from memory
/// that was planned for them, to which all of them go in one copy.
pub struct Upload<E: Element, const LISTS: usize> {
    capacities: [usize; LISTS],
    planned: Option<Planned<E>>,
}

struct Planned<E: Element> {
    tensor: Tensor,
    staging: Vec<E>,
}

impl<E: Element, const LISTS: usize> Upload<E, LISTS> {
    /// Plans for lists of up to so many elements each.
    ///
    /// # Errors
    /// When the device has not the memory.
    pub fn new(device: Device, capacities: [usize; LISTS]) -> Result<Self> {
        let elements = capacities.iter().map(|count| count.next_multiple_of(BOUNDARY)).sum();
        let planned = match device {
            Device::Cpu => None,
            _ => Some(Planned {
                tensor: Tensor::zeros(device, E::DTYPE, &[elements])?,
                staging: vec![E::zeroed(); elements],
            }),
        };
        Ok(Upload { capacities, planned })
    }

    /// Copies the lists to the device, behind all that was started on it before.
    ///
    /// # Errors
    /// When a list is longer than was planned, or the device fails.
    pub fn send(&mut self, lists: [&[E]; LISTS]) -> Result<()> {
        let Some(Planned { tensor, staging }) = &mut self.planned else { return Ok(()) };
        let mut start = 0;
        for (list, capacity) in lists.into_iter().zip(self.capacities) {
            if list.len() > capacity {
                return Err(Error::Value(format!(
                    "a list of {} elements does not fit the {capacity} that were planned for it",
                    list.len()
                )));
            }
            staging[start..start + list.len()].copy_from_slice(list);
            start += capacity.next_multiple_of(BOUNDARY);
        }
        tensor.view_mut().write(staging)?;
        Ok(())
    }

    /// [`Upload::send`] and [`Upload::views`].
    ///
    /// # Errors
    /// As for [`Upload::send`].
    pub fn place<'a>(&'a mut self, lists: [&'a [E]; LISTS]) -> Result<[View<'a>; LISTS]> {
        self.send(lists)?;
        Ok(self.views(lists))
    }

    /// What kernels read: the lists themselves on the host, elsewhere what was last sent, of which they must be the same lists.
    pub fn views<'a>(&'a self, lists: [&'a [E]; LISTS]) -> [View<'a>; LISTS] {
        let mut start = 0;
        let mut index = 0;
        lists.map(|list| {
            let view = match &self.planned {
                None => View::from_slice(list, &[list.len()]),
                Some(planned) => planned.tensor.view().rows(start..start + list.len()),
            };
            start += self.capacities[index].next_multiple_of(BOUNDARY);
            index += 1;
            view
        })
    }
}

/// A view's elements on the host: where they lie, or, from another device, in a copy, for which this waits.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When `E` is not the dtype, or the rows of a view on the host are spread out.
pub fn on_host<E: Element>(view: View<'_>) -> Result<Cow<'_, [E]>> {
    Ok(match view.device() {
        Device::Cpu => Cow::Borrowed(view.as_slice()),
        _ => Cow::Owned(view.to_vec()?),
    })
}

/// As [`on_host`], to memory that is used again and again.
pub(crate) fn fetch<'a, E: Element>(view: View<'a>, staging: &'a mut [E]) -> Result<&'a [E]> {
    if view.device() == Device::Cpu {
        return Ok(view.as_slice());
    }
    let staging = &mut staging[..view.elements()];
    ViewMut::from_slice(staging, view.dims()).copy_from(view)?;
    Ok(staging)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_arrive_on_a_device_as_they_are_and_on_the_host_nothing_is_copied() {
        let lists: [&[u32]; 3] = [&[1, 2, 3], &[], &[7; 17]];
        let mut upload = Upload::new(Device::Emulated, [3, 5, 40]).unwrap();
        for lists in [lists, [&[9], &[4, 4], &[]]] {
            upload.send(lists).unwrap();
            for (view, list) in upload.views(lists).into_iter().zip(lists) {
                assert_eq!(view.device(), Device::Emulated);
                assert_eq!(view.to_vec::<u32>().unwrap(), list);
                assert_eq!(on_host::<u32>(view).unwrap(), list);
            }
        }
        let refusal = upload.send([&[0; 4], &[], &[]]).unwrap_err().to_string();
        assert_eq!(refusal, "a list of 4 elements does not fit the 3 that were planned for it");

        let mut upload = Upload::new(Device::Cpu, [3, 5, 40]).unwrap();
        upload.send(lists).unwrap();
        for (view, list) in upload.views(lists).into_iter().zip(lists) {
            assert_eq!(view.as_slice::<u32>().as_ptr(), list.as_ptr());
            assert!(matches!(on_host::<u32>(view).unwrap(), Cow::Borrowed(_)));
        }
    }
}
