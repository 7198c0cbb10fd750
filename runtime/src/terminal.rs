//! The terminal that a person watches: its size, and keys without a line's end.

use std::time::Duration;

/// Columns and rows of the terminal on standard output; none where there is no terminal or the system does not say.
pub fn size() -> Option<(usize, usize)> {
    #[cfg(unix)]
    {
        // SAFETY: the call fills the zeroed struct it is given, and knows no other.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            if libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) != 0 {
                return None;
            }
            size
        };
        let (columns, rows) = (usize::from(size.ws_col), usize::from(size.ws_row));
        (columns > 0 && rows > 0).then_some((columns, rows))
    }
    #[cfg(not(unix))]
    None
}

/// Standard input, giving each key as it is pressed and showing none. As it was, once this is dropped.
pub struct Keys {
    #[cfg(unix)]
    before: libc::termios,
}

impl Keys {
    /// Takes over the keyboard; none where standard input is no terminal.
    pub fn take() -> Option<Keys> {
        #[cfg(unix)]
        {
            // SAFETY: the calls read and fill the struct they are given, of a file that is open as long as the process.
            unsafe {
                let mut before: libc::termios = std::mem::zeroed();
                if libc::tcgetattr(libc::STDIN_FILENO, &mut before) != 0 {
                    return None;
                }
                let mut now = before;
                now.c_lflag &= !(libc::ICANON | libc::ECHO);
                (libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &now) == 0)
                    .then_some(Keys { before })
            }
        }
        #[cfg(not(unix))]
        None
    }

    /// The key that is pressed within a time, if one is. An input that has ended gives none at once.
    pub fn pressed(&self, within: Duration) -> Option<u8> {
        #[cfg(unix)]
        {
            let wait = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
            let mut input =
                libc::pollfd { fd: libc::STDIN_FILENO, events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor is given and one is counted; the byte read lies in `key`.
            unsafe {
                if libc::poll(&mut input, 1, wait) != 1 {
                    return None;
                }
                let mut key = 0_u8;
                (libc::read(libc::STDIN_FILENO, (&raw mut key).cast(), 1) == 1).then_some(key)
            }
        }
        #[cfg(not(unix))]
        {
            std::thread::sleep(within);
            None
        }
    }
}

#[cfg(unix)]
impl Drop for Keys {
    fn drop(&mut self) {
        // SAFETY: the settings are those that the system gave.
        unsafe {
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &self.before);
        }
    }
}
