//! Temporaries, and the renames that put them in their place.
//!
//! A folder cannot be renamed over one that holds files. Linux exchanges two names in one step: the old checkpoint
//! gets the temporary's name and is removed. Where the system or the file system cannot, the old one is set
//! aside as `.old-<name>` between two renames; whoever comes after a crash there puts it back ([`put_back`]).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";
pub(super) const OLD_PREFIX: &str = ".old-";

/// A file or folder under a temporary name, locked as ours, removed on drop.
pub(super) struct Temporary {
    path: PathBuf,
    // Holds the lock. File systems without locks are written to all the same.
    _owner: Option<fs::File>,
    // The name is free for others once it was renamed, and must not be removed then.
    renamed: bool,
}

impl Temporary {
    /// An empty folder in `parent`.
    pub fn folder(parent: &Path, name: &str) -> Result<Temporary> {
        let path = create(parent, name, |path| fs::create_dir(path))?.0;
        let owner = fs::File::open(&path).ok().filter(|folder| folder.try_lock().is_ok());
        Ok(Temporary { path, _owner: owner, renamed: false })
    }

    /// An empty file beside `target`, open for writing.
    pub fn file(target: &Path) -> Result<(Temporary, fs::File)> {
        let Some(name) = target.file_name() else {
            return Err(Error::format(target, "this is not the path of a file to write"));
        };
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let (path, file) = create(parent, &name.to_string_lossy(), |path| {
            fs::File::options().write(true).create_new(true).open(path)
        })?;
        let owner = file.try_clone().ok().filter(|file| file.try_lock().is_ok());
        Ok((Temporary { path, _owner: owner, renamed: false }, file))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn rename(&mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // What cannot be removed now, `remove_stale` finds later.
            let _ = remove(&self.path);
        }
    }
}

/// Makes something new under a temporary name; names that killed processes left taken are passed over.
fn create<T>(
    parent: &Path,
    name: &str,
    make: impl Fn(&Path) -> io::Result<T>,
) -> Result<(PathBuf, T)> {
    loop {
        let path = temporary_path(parent, name);
        match make(&path) {
            Ok(made) => return Ok((path, made)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("create", parent.join(name))(error)),
        }
    }
}

fn temporary_path(parent: &Path, name: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    parent.join(format!("{TEMPORARY_PREFIX}{name}-{}-{count}", std::process::id()))
}

/// Renames a finished file to its place, over an older one.
pub(super) fn rename_file(mut temporary: Temporary, target: &Path) -> Result<()> {
    temporary.rename(target).map_err(Error::io("write", target))?;
    sync_parent(target)
}

/// Renames a finished folder to its place, and removes the one that was there.
pub(super) fn replace(mut temporary: Temporary, target: &Path) -> Result<()> {
    if !is_there(target) {
        temporary.rename(target).map_err(Error::io("create", target))?;
        return sync_parent(target);
    }
    if exchange(temporary.path(), target).map_err(Error::io("replace", target))? {
        sync_parent(target)?;
        // The old one has the temporary's name now.
        return remove(temporary.path()).map_err(Error::io("remove", temporary.path()));
    }
    replace_in_two_steps(temporary, target)
}

fn replace_in_two_steps(mut temporary: Temporary, target: &Path) -> Result<()> {
    let old = old_path(target)?;
    // Locked, so that another process does not put it back between the two renames.
    let _owner = fs::File::open(target).ok().filter(|folder| folder.try_lock().is_ok());
    fs::rename(target, &old).map_err(Error::io("replace", target))?;
    if let Err(error) = temporary.rename(target) {
        fs::rename(&old, target).map_err(Error::io("put back", target))?;
        return Err(Error::io("replace", target)(error));
    }
    sync_parent(target)?;
    discard(&old)
}

/// Puts back the folder that a crash between two renames left set aside.
pub(super) fn put_back(target: &Path) -> Result<()> {
    let old = old_path(target)?;
    if is_there(&old) && !is_there(target) && is_unowned(&old) {
        fs::rename(&old, target).map_err(Error::io("put back", target))?;
        sync_parent(target)?;
    }
    Ok(())
}

/// As [`put_back`]; removes what was set aside if its successor is in place.
pub(super) fn settle(target: &Path) -> Result<()> {
    put_back(target)?;
    let old = old_path(target)?;
    if is_there(&old) && is_there(target) && is_unowned(&old) {
        discard(&old)?;
    }
    Ok(())
}

/// Removes a folder; from the first moment it no longer has a name under which half of it could be read.
pub(super) fn discard(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::format(path, "this is not a folder that can be removed"));
    };
    let temporary = temporary_path(parent, &name.to_string_lossy());
    fs::rename(path, &temporary).map_err(Error::io("remove", path))?;
    remove(&temporary).map_err(Error::io("remove", path))
}

/// Removes a temporary unless the process that writes it lives. Whether it was removed.
pub(super) fn remove_unowned(path: &Path) -> Result<bool> {
    if !is_unowned(path) {
        return Ok(false);
    }
    remove(path).map_err(Error::io("remove", path))?;
    Ok(true)
}

// Where locks do not work nothing can be said, and what is there is left alone.
fn is_unowned(path: &Path) -> bool {
    fs::File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn old_path(target: &Path) -> Result<PathBuf> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::format(target, "this is not the path of a checkpoint"))?;
    Ok(target.with_file_name(format!("{OLD_PREFIX}{}", name.to_string_lossy())))
}

/// Removes a file or a folder with all it holds; none there is no error.
fn remove(path: &Path) -> io::Result<()> {
    let result = match path.symlink_metadata() {
        Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Flushes a folder's list of names to disk.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    // Elsewhere folders cannot be opened, and renames are flushed by the system.
    if cfg!(unix) {
        fs::File::open(path)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::io("flush", path))?;
    }
    Ok(())
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// Exchanges two names in one step. False when this system or file system cannot.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    let one = CString::new(one.as_os_str().as_bytes())?;
    let other = CString::new(other.as_os_str().as_bytes())?;
    // Called by number: the C library of older systems has no function for it.
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM) => Ok(false),
        _ => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_one: &Path, _other: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(parent: &Path, name: &str, text: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), text).unwrap();
        path
    }

    fn names(parent: &Path) -> Vec<String> {
        super::super::names_in(parent).unwrap()
    }

    fn finished(parent: &Path, text: &str) -> Temporary {
        let temporary = Temporary::folder(parent, "model").unwrap();
        fs::write(temporary.path().join("file"), text).unwrap();
        temporary
    }

    #[test]
    fn replacing_leaves_the_new_folder_alone_with_and_without_exchange() {
        for replace in [replace, replace_in_two_steps] {
            let parent = tempfile::tempdir().unwrap();
            let target = folder_with(parent.path(), "model", "old");
            replace(finished(parent.path(), "new"), &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
            assert_eq!(names(parent.path()), ["model"]);
        }
    }

    #[test]
    fn a_folder_set_aside_by_a_crash_between_two_renames_is_put_back() {
        let parent = tempfile::tempdir().unwrap();
        folder_with(parent.path(), ".old-model", "old");
        let target = parent.path().join("model");
        put_back(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "old");
        assert_eq!(names(parent.path()), ["model"]);
    }

    #[test]
    fn a_folder_whose_owner_lives_is_neither_put_back_nor_removed() {
        let parent = tempfile::tempdir().unwrap();
        let old = folder_with(parent.path(), ".old-model", "old");
        let owner = fs::File::open(&old).unwrap();
        owner.lock().unwrap();
        put_back(&parent.path().join("model")).unwrap();
        assert!(!remove_unowned(&old).unwrap());
        assert_eq!(names(parent.path()), [".old-model"]);
        drop(owner);
        assert!(remove_unowned(&old).unwrap());
    }

    #[test]
    fn what_was_set_aside_goes_once_its_successor_is_in_place() {
        let parent = tempfile::tempdir().unwrap();
        folder_with(parent.path(), ".old-model", "old");
        let target = folder_with(parent.path(), "model", "new");
        settle(&target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
        assert_eq!(names(parent.path()), ["model"]);
    }

    #[test]
    fn a_temporary_whose_name_a_killed_process_left_taken_gets_another() {
        let parent = tempfile::tempdir().unwrap();
        // The counter is shared with tests beside this one: take many of the names that come next.
        for ahead in 0..1000 {
            let taken = format!(".tmp-model-{}-{ahead}", std::process::id());
            fs::create_dir(parent.path().join(taken)).unwrap();
        }
        let temporary = finished(parent.path(), "new");
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
    }
}
