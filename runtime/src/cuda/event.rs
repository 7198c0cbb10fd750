//! Marks in a device's order of work, and the time between them.

use cudarc::driver::sys::{CUevent, CUevent_flags};

use super::context::{Context, context};
use crate::Result;

/// A mark that a device passes when everything started before it is done.
pub struct Event {
    context: &'static Context,
    event: CUevent,
}

// SAFETY: a handle of the driver, whose functions may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A mark of a device, not yet set.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn new(device: u32) -> Result<Self> {
        let context = context(device)?;
        Ok(Event { context, event: context.event(CUevent_flags::CU_EVENT_DEFAULT)? })
    }

    /// Sets the mark behind everything that was started so far.
    ///
    /// # Errors
    /// When the device fails.
    pub fn record(&mut self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: event and stream are this context's.
        Ok(unsafe { self.context.driver.cuEventRecord(self.event, self.context.stream) }?)
    }

    /// Waits until the device has passed the mark.
    ///
    /// # Errors
    /// When a kernel before it failed.
    pub fn wait(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event is this context's.
        Ok(unsafe { self.context.driver.cuEventSynchronize(self.event) }?)
    }

    /// Milliseconds of the device's time from `earlier`, a mark of the same device, to this one; waits for it.
    ///
    /// # Errors
    /// When a kernel before it failed, or one of the marks was never set.
    pub fn milliseconds_since(&self, earlier: &Event) -> Result<f32> {
        self.wait()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events live, and the place for the time lives for the call.
        unsafe {
            self.context.driver.cuEventElapsedTime_v2(&mut milliseconds, earlier.event, self.event)
        }?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `new` and used by nobody after this.
            let _ = unsafe { self.context.driver.cuEventDestroy_v2(self.event) };
        }
    }
}
