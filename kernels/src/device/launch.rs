//! Starting a kernel.

use std::borrow::Cow;
use std::cell::RefCell;
use std::marker::PhantomData;

use prime_runtime::cuda::{self, Geometry};
use prime_runtime::{Device, Result, View, ViewMut};

use super::{DeviceStruct, Source};

/// An address in device memory as an argument struct holds it: `Global<T>` in `.cu` text. Under the emulator its top 16 bits say through which
/// view of the launch it may be used.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pointer(u64);

impl Pointer {
    /// No address: an argument that is left out.
    pub(crate) const NULL: Pointer = Pointer(0);

    /// The pointer to the start of a launch's extent of that index, as the emulated device takes it.
    pub(crate) const fn tagged(start: u64, index: usize) -> Pointer {
        Pointer(start | (index as u64 + 1) << 48)
    }

    /// The address as the kernel receives it.
    pub(crate) const fn address(self) -> u64 {
        self.0
    }
}

/// What a kernel may touch through one of its pointers.
// Only the emulated device looks at all of it.
#[cfg_attr(not(feature = "emulated"), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Address of the first element.
    pub(crate) start: u64,
    /// Number of rows.
    pub(crate) rows: u64,
    /// Bytes of a row.
    pub(crate) row_bytes: u64,
    /// Bytes from the start of one row to the start of the next.
    pub(crate) row_stride: u64,
    /// Whether it may be written.
    pub(crate) writable: bool,
}

/// An instance that a launch asks for.
pub(super) type Wanted = (&'static Source, String);

thread_local! {
    /// What launches of this thread ask for while they are listed instead of started.
    static LISTED: RefCell<Option<Vec<Wanted>>> = const { RefCell::new(None) };
}

/// The instances that `work` would start, each once, without starting any. Launchers read no device memory, so that what they start does not
/// depend on what was started before.
///
/// # Errors
/// When `work` fails.
pub(super) fn list<E>(
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<Vec<Wanted>, E> {
    LISTED.set(Some(Vec::new()));
    let outcome = work();
    let listed = LISTED.take().unwrap_or_default();
    outcome.map(|()| listed)
}

/// Whether launches are listed now; then this one is.
fn listed(source: &'static Source, expression: &str) -> bool {
    LISTED.with_borrow_mut(|listed| {
        let Some(listed) = listed else { return false };
        if !listed.iter().any(|(known, text)| known.name == source.name && text == expression) {
            listed.push((source, expression.to_owned()));
        }
        true
    })
}

/// Pointers of a launch, at most.
const MOST_EXTENTS: usize = 32;

/// One launch of a kernel: who it is, what it may touch, and how many run it.
pub(crate) struct Launch<'a> {
    source: &'static Source,
    expression: Cow<'static, str>,
    device: Device,
    geometry: Geometry,
    extents: [Extent; MOST_EXTENTS],
    extent_count: usize,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> Launch<'a> {
    /// A launch of an instance that the source lists, on `Cuda` or `Emulated`. One block of one thread until told otherwise.
    pub(crate) fn new(
        source: &'static Source,
        expression: impl Into<Cow<'static, str>>,
        device: Device,
    ) -> Self {
        let nothing = Extent { start: 0, rows: 0, row_bytes: 0, row_stride: 0, writable: false };
        Launch {
            source,
            expression: expression.into(),
            device,
            geometry: Geometry {
                grid: [1; 3],
                block: 1,
                cluster: 1,
                shared_bytes: 0,
                early: false,
            },
            extents: [nothing; MOST_EXTENTS],
            extent_count: 0,
            lifetime: PhantomData,
        }
    }

    /// Where it will run.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// A pointer through which the kernel may read a view.
    pub(crate) fn read(&mut self, view: View<'a>) -> Pointer {
        self.pointer(view, false)
    }

    /// [`Launch::read`] of a view that may be left out.
    pub(crate) fn read_if(&mut self, view: Option<View<'a>>) -> Pointer {
        view.map_or(Pointer::NULL, |view| self.read(view))
    }

    /// A pointer through which the kernel may read and write a view.
    pub(crate) fn write(&mut self, view: &'a mut ViewMut<'_>) -> Pointer {
        let view = view.as_view();
        self.pointer(view, true)
    }

    /// [`Launch::write`] of a view that may be left out.
    pub(crate) fn write_if(&mut self, view: Option<&'a mut ViewMut<'_>>) -> Pointer {
        view.map_or(Pointer::NULL, |view| self.write(view))
    }

    fn pointer(&mut self, view: View<'_>, writable: bool) -> Pointer {
        assert_eq!(
            view.device(),
            self.device,
            "a launch on one device was given a tensor of another"
        );
        let size = view.dtype().size() as u64;
        let rows = view.dims().first().copied().unwrap_or(1) as u64;
        let row_bytes = (view.elements() as u64).checked_div(rows).unwrap_or(0) * size;
        let extent = Extent {
            start: view.address(),
            rows,
            row_bytes,
            row_stride: view.row_stride() as u64 * size,
            writable,
        };
        assert!(self.extent_count < MOST_EXTENTS, "a launch has at most {MOST_EXTENTS} pointers");
        self.extents[self.extent_count] = extent;
        self.extent_count += 1;
        match self.device {
            Device::Emulated => Pointer::tagged(extent.start, self.extent_count - 1),
            _ => Pointer(extent.start),
        }
    }

    /// Blocks in each direction.
    pub(crate) fn grid(mut self, grid: [usize; 3]) -> Self {
        self.geometry.grid = grid
            .map(|blocks| u32::try_from(blocks).expect("a grid has fewer than 2^32 blocks a side"));
        self
    }

    /// Threads of a block.
    pub(crate) fn block(mut self, threads: u32) -> Self {
        self.geometry.block = threads;
        self
    }

    /// Blocks of a cluster, along the first direction of the grid.
    pub(crate) fn cluster(mut self, blocks: u32) -> Self {
        self.geometry.cluster = blocks;
        self
    }

    /// Bytes of shared memory of a block.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.geometry.shared_bytes =
            u32::try_from(bytes).expect("a block has fewer than 2^32 bytes of shared memory");
        self
    }

    /// How many blocks of this shape and size a device holds at once, one on each of its multiprocessors but for those that no whole cluster fits on.
    ///
    /// # Errors
    /// When the kernel cannot be compiled, or not even one cluster fits.
    pub(crate) fn resident_blocks(&self, multiprocessors: usize) -> Result<usize> {
        let cluster = self.geometry.cluster as usize;
        let listing = LISTED.with_borrow(Option::is_some);
        let Device::Cuda(number) = self.device else {
            return Ok(multiprocessors / cluster * cluster);
        };
        if listing || cluster == 1 {
            return Ok(multiprocessors / cluster * cluster);
        }
        let function = cuda::function(number, &self.source.program(), &self.expression)?;
        let one = Geometry { grid: [self.geometry.cluster, 1, 1], ..self.geometry };
        let clusters = function.clusters(one)? as usize;
        if clusters == 0 {
            return Err(prime_runtime::Error::Device(format!(
                "no cluster of `{}` fits on {}: {:?}",
                self.expression, self.device, self.geometry
            )));
        }
        Ok(clusters * cluster)
    }

    /// Lets the kernel be started before the one ahead of it has ended: it calls `begin_grid` before anything else.
    pub(crate) fn early(mut self) -> Self {
        self.geometry.early = true;
        self
    }

    /// Starts the kernel with its arguments, behind all that was started on the device before. A grid without blocks does nothing.
    ///
    /// # Errors
    /// When the kernel cannot be compiled or started; on the emulated device, which waits for its end, when it breaks a rule.
    pub(crate) fn run<S: DeviceStruct>(&self, arguments: &S) -> Result<()> {
        if self.geometry.grid.contains(&0) || listed(self.source, &self.expression) {
            return Ok(());
        }
        // SAFETY: an argument struct is plain data of `repr(C)`, alive for the call; padding is copied, not looked at.
        let bytes = unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(arguments).cast::<u8>(), size_of::<S>())
        };
        match self.device {
            Device::Cpu => unreachable!("the host has versions of its own"),
            #[cfg(feature = "emulated")]
            Device::Emulated => super::emulator::launch(
                self.source,
                &self.expression,
                bytes,
                self.geometry,
                &self.extents[..self.extent_count],
            ),
            #[cfg(not(feature = "emulated"))]
            Device::Emulated => super::check(self.device),
            Device::Cuda(number) => {
                let function = cuda::function(number, &self.source.program(), &self.expression)?;
                // SAFETY: the struct has the layout of the kernel's, which a test compares with the device code's text; its addresses are
                // of views that live as long as this launch, and memory is given back behind what was started before.
                unsafe { cuda::launch(function, self.geometry, bytes) }
            }
            device => Err(crate::arguments::no_version("launch", device)),
        }
    }
}
