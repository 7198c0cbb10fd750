//! Programs that mean harm, run by the code grader: none outlives its limits, none touches anything outside.
//!
//! The ordinary tests run each kind once. All 1,000, and the log's summary:
//!
//! ```sh
//! cargo test -p prime --test hostile -- --ignored --nocapture
//! ```

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prime::graders::code::{Code, Test, Verdict};
use prime::graders::settings::CodeSettings;
use prime::graders::work;

/// What the process number, the folder and the port below stand for is put in before a program runs.
const KINDS: &[(&str, &str)] = &[
    ("fork bomb", "import os\nwhile True: os.fork()"),
    (
        "fork bomb that ignores errors",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    ),
    ("raw fork", "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.fork(); libc.vfork()"),
    (
        "raw clone",
        "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.syscall(56, 17, 0, 0, 0, 0); libc.syscall(435, 0, 0)",
    ),
    (
        "subprocess",
        "import subprocess\nsubprocess.Popen(['/bin/sh', '-c', 'sleep 1000'])\nprint('started')",
    ),
    (
        "double fork and new session",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)",
    ),
    (
        "sleeping child",
        "import multiprocessing, time\nmultiprocessing.Process(target=time.sleep, args=(1000,)).start()",
    ),
    ("endless loop", "while True: pass"),
    (
        "endless loop that catches",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ),
    (
        "deaf to signals",
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\nwhile True: pass",
    ),
    (
        "deaf sleeper",
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(1000)",
    ),
    (
        "endless threads",
        "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(1000,)).start()\n    except Exception: pass",
    ),
    (
        "busy threads",
        "import threading\ndef f():\n    while True: pass\nfor _ in range(8): threading.Thread(target=f).start()",
    ),
    ("memory by doubling", "x = 'x' * 1024\nwhile True: x += x"),
    (
        "memory by pieces",
        "x = []\nwhile True:\n    try: x.append(bytearray(1 << 20))\n    except MemoryError: pass",
    ),
    (
        "memory mapped",
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24)); x[-1].write(b'x' * (1 << 24))",
    ),
    (
        "memory in files without names",
        "import os\nwhile True:\n    f = os.memfd_create('x'); os.write(f, b'x' * (1 << 20))",
    ),
    ("deep recursion", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()"),
    ("huge integer", "print(10 ** 10 ** 9)"),
    ("regular expression", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')"),
    ("output flood", "while True: print('x' * 65536)"),
    ("error flood", "import sys\nwhile True: sys.stderr.write('x' * 65536)"),
    (
        "raw output flood",
        "import os\nwhile True:\n    try: os.write(1, b'x' * 65536)\n    except OSError: pass",
    ),
    ("many files", "i = 0\nwhile True: open(f'/tmp/{i}', 'w').write('x' * 4096); i += 1"),
    ("large file", "f = open('/tmp/x', 'wb')\nwhile True: f.write(b'x' * (1 << 20))"),
    ("sparse file", "f = open('/tmp/x', 'wb')\nf.truncate(1 << 40)\nprint('grown')"),
    (
        "open files",
        "import os\nx = []\nwhile True:\n    try: x.append(os.dup(0))\n    except OSError: pass",
    ),
    (
        "pipes",
        "import os\nx = []\nwhile True:\n    p = os.pipe(); os.set_blocking(p[1], False); os.write(p[1], b'x' * (1 << 16)); x.append(p)",
    ),
    (
        "network",
        "import socket\ns = socket.create_connection(('127.0.0.1', PORT), 1); s.send(b'x'); print('sent')",
    ),
    (
        "raw socket",
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor f in range(46):\n    for t in (1, 2, 3):\n        if libc.socket(f, t, 0) >= 0: print('socket', f, t)",
    ),
    (
        "own server",
        "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); print('listening')",
    ),
    ("signal to the victim", "import os, signal\nos.kill(VICTIM, signal.SIGKILL)\nprint('killed')"),
    ("signal to all", "import os, signal\nos.kill(-1, signal.SIGKILL)\nprint('killed')"),
    (
        "signal to every number",
        "import os\nfor p in range(1, 70000):\n    try: os.kill(p, 9)\n    except OSError: pass",
    ),
    ("signal to its group", "import os\nos.killpg(0, 9)\nprint('killed')"),
    ("signal to its parent", "import os\nos.kill(os.getppid(), 9)\nprint('killed')"),
    (
        "raw signals",
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor n in (62, 200, 234, 129, 297, 424): libc.syscall(n, VICTIM, 9, 9, 0)",
    ),
    (
        "signals by files",
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 8, VICTIM); fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, 4, 0o20000)\nos.write(w, b'x')\nprint('sent')",
    ),
    ("other process's memory", "open('/proc/VICTIM/mem', 'wb').write(b'x')\nprint('written')"),
    (
        "ptrace",
        "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.ptrace(16, VICTIM, 0, 0) == 0: print('attached')",
    ),
    (
        "limits of others",
        "import ctypes\nlibc = ctypes.CDLL(None)\nb = (ctypes.c_ulong * 2)(0, 0)\nif libc.prlimit(VICTIM, 0, b, None) == 0: print('limited')",
    ),
    (
        "priorities of others",
        "import os\nos.setpriority(os.PRIO_PROCESS, VICTIM, 19)\nprint('set')",
    ),
    ("deleting", "import shutil\nshutil.rmtree('FOLDER')\nprint('deleted')"),
    (
        "deleting everything",
        "import os\nfor root, folders, files in os.walk('/', topdown=False):\n    for f in files + folders:\n        try: os.remove(os.path.join(root, f))\n        except OSError: pass",
    ),
    ("writing", "open('FOLDER/kept', 'w').write('x')\nprint('written')"),
    ("writing beside", "open('FOLDER/new', 'w').write('x')\nprint('written')"),
    (
        "truncating",
        "import os\nos.open('FOLDER/kept', os.O_RDONLY | os.O_TRUNC)\nprint('truncated')",
    ),
    ("truncating by path", "import os\nos.truncate('FOLDER/kept', 0)\nprint('truncated')"),
    ("modes", "import os\nos.chmod('FOLDER', 0)\nprint('changed')"),
    ("times", "import os\nos.utime('FOLDER/kept', (0, 0))\nprint('changed')"),
    (
        "links",
        "import os\nos.symlink('FOLDER', '/tmp/link')\nopen('/tmp/link/kept', 'w').write('x')\nprint('written')",
    ),
    (
        "hard links",
        "import os\nos.link('FOLDER/kept', '/tmp/kept')\nopen('/tmp/kept', 'w').write('x')\nprint('written')",
    ),
    ("reading", "print('read', open('FOLDER/kept').read())"),
    ("reading accounts", "print('read', open('/etc/passwd').read())"),
    (
        "mounting",
        "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('mounted')",
    ),
    ("leaving the root", "import os\nos.chroot('/tmp')\nprint('left')"),
    (
        "new namespaces",
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor f in (0x10000000, 0x20000, 0x40000000):\n    if libc.unshare(f) == 0: print('unshared')",
    ),
    ("becoming root", "import os\nos.setuid(0)\nprint('root')"),
    (
        "asynchronous calls",
        "import ctypes\nlibc = ctypes.CDLL(None)\nb = ctypes.create_string_buffer(256)\nif libc.syscall(425, 8, b) >= 0: print('ring')",
    ),
    (
        "kernel keys and programs",
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor n in (248, 250, 321, 323, 298, 175, 169):\n    if libc.syscall(n, 0, 0, 0, 0, 0) >= 0: print('done', n)",
    ),
    (
        "removing its limits",
        "import resource\nfor r in (0, 1, 6, 7, 9):\n    try: resource.setrlimit(r, (-1, -1)); print('removed', r)\n    except (ValueError, OSError): pass\nwhile True: pass",
    ),
    ("standard input", "import os, sys\nos.write(0, b'x')\nprint('written')"),
    (
        "closing and reopening",
        "import os\nfor f in range(64):\n    try: os.close(f)\n    except OSError: pass\nos.fork()",
    ),
    (
        "replacing itself",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'while :; do sleep 1 & done'])",
    ),
    (
        "32-bit calls",
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x02\\x00\\x00\\x00\\xcd\\x80\\xc3')\nctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\nprint('forked')",
    ),
    ("crash", "import ctypes\nctypes.string_at(0)"),
    ("abort", "import os\nwhile True: os.abort()"),
];

/// What must be untouched.
struct Outside {
    folder: tempfile::TempDir,
    victim: Child,
    listener: TcpListener,
}

impl Outside {
    fn new() -> Outside {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kept"), "kept").unwrap();
        // As open as can be: nothing but the sandbox stands before it.
        use std::os::unix::fs::PermissionsExt;
        let set = |path: PathBuf, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
        };
        set(folder.path().to_owned(), 0o777);
        set(folder.path().join("kept"), 0o666);
        let victim = Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Outside { folder, victim, listener }
    }

    fn program(&self, text: &str) -> String {
        text.replace("VICTIM", &self.victim.id().to_string())
            .replace("FOLDER", self.folder.path().to_str().unwrap())
            .replace("PORT", &self.listener.local_addr().unwrap().port().to_string())
    }

    fn check(&mut self) {
        assert!(self.victim.try_wait().unwrap().is_none(), "the victim was killed");
        let names: Vec<_> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["kept"]);
        let kept = self.folder.path().join("kept");
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "kept");
        assert!(
            std::fs::metadata(&kept).unwrap().modified().unwrap().elapsed().unwrap()
                < Duration::from_secs(7200)
        );
        assert!(self.listener.accept().is_err(), "somebody connected");
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

fn settings() -> CodeSettings {
    CodeSettings {
        processor_seconds: 1.0,
        wall_seconds: 2.0,
        memory_mib: 256,
        output_kib: 64,
        folder_mib: 4,
        threads: 16,
        ..Default::default()
    }
}

/// Processes of this machine that descend from this test or lie in a sandbox: those whose parent is this process, the victim aside.
fn children(except: u32) -> Vec<String> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        let parent: u32 = after.split(' ').nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
        let user = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let user: u32 = user
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        // Sandboxed programs of a root test run as such users, whoever their parent has become.
        if pid != except
            && (parent == own || (61_184..65_280).contains(&user) && stat.contains("python"))
        {
            found.push(stat);
        }
    }
    found
}

fn run_all(programs: &[(&str, String)], outside: &mut Outside) {
    let code = Code::new(&settings());
    if let Err(reason) = code.sandbox() {
        println!("skipped: {reason}");
        return;
    }
    let test = Test::Streams { input: "1\n".into(), output: "\u{1}never\u{1}".into() };
    let started = Instant::now();
    let outcomes = work::in_order(programs, work::workers(0), |(kind, program)| {
        let started = Instant::now();
        let verdict =
            code.run(program, &test, None).unwrap_or_else(|error| panic!("{kind}: {error}"));
        (*kind, verdict, started.elapsed())
    });
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for (kind, verdict, time) in &outcomes {
        let Verdict::Failed(ending, error) = verdict else { panic!("{kind} passed") };
        *ends.entry(format!("{ending:?}")).or_default() += 1;
        longest = longest.max(*time);
        // The limit of wall time, and what a busy machine adds.
        assert!(*time < Duration::from_secs(12), "{kind} took {time:?}: {ending:?} {error}");
    }
    outside.check();
    let left = children(outside.victim.id());
    assert!(left.is_empty(), "{left:#?}");
    println!(
        "{} programs of {} kinds in {:.1?}, the longest {longest:.2?}: {ends:?}",
        programs.len(),
        KINDS.len(),
        started.elapsed()
    );
}

#[test]
fn no_kind_of_hostile_program_outlives_its_limits_or_touches_anything_outside() {
    let mut outside = Outside::new();
    let programs: Vec<(&str, String)> =
        KINDS.iter().map(|(kind, text)| (*kind, outside.program(text))).collect();
    run_all(&programs, &mut outside);
}

/// What a program was meant to print only when it got through.
#[test]
fn no_hostile_program_reports_success() {
    let outside = Outside::new();
    let code = Code::new(&settings());
    if let Err(reason) = code.sandbox() {
        println!("skipped: {reason}");
        return;
    }
    for (kind, text) in
        KINDS.iter().filter(|(_, text)| text.contains("print('") && !text.contains("while"))
    {
        // A program that fails prints nothing: an empty output is then what it is held against.
        let program =
            format!("try:\n{}\nexcept BaseException: pass", indent(&outside.program(text)));
        let test = Test::Streams { input: String::new(), output: String::new() };
        match code.run(&program, &test, None).unwrap() {
            Verdict::Passed => {}
            Verdict::Failed(ending, error) => {
                let harmless = !matches!(ending, prime_runtime::sandbox::Ending::Exited(0));
                assert!(harmless, "{kind} got through: {error}");
            }
        }
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

/// 1,000 programs: every kind, again and again, alone and two after each other in one program.
#[test]
#[ignore = "takes many minutes: run it by name"]
fn a_thousand_hostile_programs() {
    let mut outside = Outside::new();
    let programs: Vec<(&str, String)> = (0..1000)
        .map(|i| {
            let (kind, text) = KINDS[i % KINDS.len()];
            let text = outside.program(text);
            if i < KINDS.len() {
                return (kind, text);
            }
            let (_, first) = KINDS[(i * 31 + i / KINDS.len()) % KINDS.len()];
            let first = outside.program(first);
            let guarded = format!("import threading\ndef _first():\n{}\n", indent(&first.replace("print(", "str(")));
            // Beside each other, so that the first, which may be endless, does not keep the second from running.
            (kind, format!("{guarded}try: threading.Thread(target=_first, daemon=True).start()\nexcept Exception: pass\n{text}"))
        })
        .collect();
    run_all(&programs, &mut outside);
}
