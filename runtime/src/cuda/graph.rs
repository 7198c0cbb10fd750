//! Graphs: work that is recorded once and then started as one.
//!
//! Starting a kernel costs the host a few microseconds, and a decode step starts hundreds of small ones. Recorded as a
//! graph they cost one call. A graph remembers addresses and argument structs, so it is started on the buffers that it
//! was recorded with; what changes from step to step must lie in device memory.

use std::mem::MaybeUninit;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphExecUpdateResultInfo, CUstreamCaptureMode};

use super::context::{Context, context};
use crate::Result;

/// Recorded work of a device, ready to be started.
pub struct Graph {
    context: &'static Context,
    executable: CUgraphExec,
    nodes: usize,
}

// SAFETY: a handle of the driver; starting it is ordered by the stream, changing it needs the graph exclusively.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` starts on a device instead of running it. Kernels must have been compiled and scratch memory
    /// reserved before, so let the work run once first; while it is recorded, no other thread may use the device.
    ///
    /// # Errors
    /// When `work` fails, or does what no graph can hold, such as a copy to the host.
    pub fn capture(device: u32, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let context = context(device)?;
        let recorded = Recorded::new(context, work)?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is whole, and the place for the executable lives for the call.
        unsafe { context.driver.cuGraphInstantiateWithFlags(&mut executable, recorded.graph, 0) }?;
        let graph = Graph { context, executable, nodes: recorded.nodes()? };
        // SAFETY: the executable was just made; the upload only moves the first launch's work ahead.
        unsafe { context.driver.cuGraphUpload(executable, context.stream) }?;
        Ok(graph)
    }

    /// Starts the work, behind all that was started on the device before.
    ///
    /// # Errors
    /// When the device fails.
    pub fn launch(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: executable and stream are this context's.
        Ok(unsafe { self.context.driver.cuGraphLaunch(self.executable, self.context.stream) }?)
    }

    /// Records anew, as [`Graph::capture`] does. Where only sizes and arguments have changed, the executable is kept and
    /// takes them over, which is much cheaper than a new one.
    ///
    /// # Errors
    /// As for [`Graph::capture`].
    pub fn update(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.context.enter()?;
        let recorded = Recorded::new(self.context, work)?;
        let mut result = MaybeUninit::<CUgraphExecUpdateResultInfo>::uninit();
        // SAFETY: both graphs live; what the driver writes to `result` is not looked at.
        let updated = unsafe {
            self.context.driver.cuGraphExecUpdate_v2(
                self.executable,
                recorded.graph,
                result.as_mut_ptr(),
            )
        };
        if updated.is_ok() {
            return Ok(());
        }
        // The driver refuses when kernels were added, removed or put in another order.
        let mut executable = std::ptr::null_mut();
        // SAFETY: as in `capture`.
        unsafe {
            self.context.driver.cuGraphInstantiateWithFlags(&mut executable, recorded.graph, 0)
        }?;
        let replaced = Graph { context: self.context, executable, nodes: recorded.nodes()? };
        *self = replaced;
        Ok(())
    }

    /// How many kernels, copies and fills it starts.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by the driver and used by nobody after this; the driver lets a running launch end first.
            let _ = unsafe { self.context.driver.cuGraphExecDestroy(self.executable) };
        }
    }
}

/// A graph as it was recorded.
struct Recorded {
    context: &'static Context,
    graph: CUgraph,
}

impl Recorded {
    fn new(context: &'static Context, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        context.refuse_in_capture("a graph")?;
        let capture = Capture::begin(context)?;
        let done = work();
        // Ended in any case: a stream that is left capturing cannot be used again.
        let recorded = capture.end();
        done?;
        recorded
    }

    fn nodes(&self) -> Result<usize> {
        let mut nodes = 0;
        // SAFETY: without a place for the nodes the driver only counts them.
        unsafe {
            self.context.driver.cuGraphGetNodes(self.graph, std::ptr::null_mut(), &mut nodes)
        }?;
        Ok(nodes)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: the graph is this value's alone.
        let _ = unsafe { self.context.driver.cuGraphDestroy(self.graph) };
    }
}

/// A stream that records; ends when dropped, should the recorded work panic.
struct Capture(&'static Context);

impl Capture {
    fn begin(context: &'static Context) -> Result<Self> {
        // Of this thread only: other threads may go on with devices of their own.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this context's and does not capture yet.
        unsafe { context.driver.cuStreamBeginCapture_v2(context.stream, mode) }?;
        context.set_capturing(true);
        Ok(Capture(context))
    }

    fn end(self) -> Result<Recorded> {
        let context = self.0;
        std::mem::forget(self);
        Capture::stop(context)
    }

    fn stop(context: &'static Context) -> Result<Recorded> {
        context.set_capturing(false);
        context.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream captures, and the place for the graph lives for the call.
        unsafe { context.driver.cuStreamEndCapture(context.stream, &mut graph) }?;
        Ok(Recorded { context, graph })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = Capture::stop(self.0);
    }
}
