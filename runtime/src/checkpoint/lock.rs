//! One run in a folder at a time.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

const LOCK: &str = ".lock";

/// Keeps other runs out of a folder for as long as it lives. The system releases it when the process ends, also
/// by a crash; the file `.lock` stays and means nothing by itself.
#[derive(Debug)]
pub struct FolderLock {
    file: fs::File,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing alone would not do where a process was started meanwhile: until that runs its program, it has the file open too.
        let _ = self.file.unlock();
    }
}

impl FolderLock {
    /// Locks a folder, which is created if need be.
    ///
    /// # Errors
    /// A sentence with the number of the process that holds it, or the system's refusal.
    pub fn acquire(folder: impl AsRef<Path>) -> Result<FolderLock> {
        let folder = folder.as_ref();
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let path = folder.join(LOCK);
        // Not truncated on opening: until the lock is ours, the number in it is its holder's.
        let mut file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path)
                    .ok()
                    .and_then(|text| text.trim().parse::<u32>().ok())
                    .map_or("another process".to_string(), |id| format!("process {id}"));
                return Err(Error::format(
                    folder,
                    format!(
                        "{holder} is running in this folder; wait for it, end it, or choose another folder"
                    ),
                ));
            }
            Err(fs::TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(Error::io("write", &path))?;
        Ok(FolderLock { file })
    }
}
