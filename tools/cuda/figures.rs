//! What the compiler's messages tell of each instance.

/// Figures of one instance on one chip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of shared memory that the text declares itself; what a launcher asks for comes on top.
    pub shared: u32,
    /// Bytes of local memory a thread: what was spilled, and arrays that are indexed by what is not known at compile time.
    pub stack: u32,
    /// Bytes of the instructions that spill.
    pub spill_stores: u32,
    /// Bytes of the instructions that load what was spilled.
    pub spill_loads: u32,
    /// Threads of a block at most, as KERNEL(...) says.
    pub threads: u32,
    /// Registers of a thread after setmaxnreg, where one warpgroup gives some away and the others take them.
    pub moved: Option<(u32, u32)>,
    /// An access to memory before the wait for the kernel ahead, in a kernel that waits for it.
    pub early: Option<String>,
}

impl Figures {
    /// Bytes of local memory a thread, of whatever kind. What is spilled lies in the stack frame; a place there may be stored to more
    /// than once.
    pub fn local(&self) -> u32 {
        if self.stack > 0 { self.stack } else { self.spill_stores }
    }

    /// Whether warpgroups take more registers than the block has, and so wait for ever: the first warpgroup gives, the others take.
    pub fn takes_too_many(&self) -> bool {
        const WARPGROUP: u32 = 128;
        let Some((given, taken)) = self.moved else { return false };
        let others = self.threads.saturating_sub(WARPGROUP);
        WARPGROUP * given + others * taken > self.threads * self.registers.next_multiple_of(8)
    }
}

/// Figures of the symbols, from the log of `ptxas -v` and the PTX text.
pub fn figures(log: &str, ptx: &str, symbols: &[String]) -> Vec<Option<Figures>> {
    symbols.iter().map(|symbol| figures_of(log, ptx, symbol)).collect()
}

fn figures_of(log: &str, ptx: &str, symbol: &str) -> Option<Figures> {
    let head = format!("Compiling entry function '{symbol}'");
    let part = log.split("ptxas info").skip_while(|part| !part.contains(&head)).skip(1);
    // Three messages follow: properties with the stack's figures, use of registers, time.
    let part =
        part.take_while(|part| !part.contains("Compiling entry function")).collect::<String>();
    Some(Figures {
        registers: number_before(&part, " registers")?,
        shared: number_before(&part, " bytes smem").unwrap_or(0),
        stack: number_before(&part, " bytes stack frame")?,
        spill_stores: number_before(&part, " bytes spill stores")?,
        spill_loads: number_before(&part, " bytes spill loads")?,
        threads: threads_of(ptx, symbol)?,
        moved: moved_registers(entry_of(ptx, symbol)?),
        early: early_access(entry_of(ptx, symbol)?),
    })
}

/// An entry's text, and what follows it up to the next.
fn entry_of<'a>(ptx: &'a str, symbol: &str) -> Option<&'a str> {
    ptx.split(".entry ")
        .find(|entry| entry.strip_prefix(symbol).is_some_and(|rest| rest.starts_with('(')))
}

fn moved_registers(entry: &str) -> Option<(u32, u32)> {
    let to = |action: &str| -> Option<u32> {
        let rest = entry.split(&format!("setmaxnreg.{action}.sync.aligned.u32 ")).nth(1)?;
        rest[..rest.find(';')?].trim().parse().ok()
    };
    Some((to("dec")?, to("inc")?))
}

/// What the kernel ahead may have written is read after the wait, and what it may read is written after it. The compiler may not move accesses
/// over the wait either.
fn early_access(entry: &str) -> Option<String> {
    const ACCESSES: [&str; 6] = ["ld.", "ldu.", "st.", "atom.", "red.", "cp."];
    const ELSEWHERE: [&str; 4] = [".param", ".const", ".shared::cta", ".shared."];
    let (before, _) = entry.split_once("griddepcontrol.wait")?;
    let mut lines = before.lines().map(str::trim);
    lines
        .find(|line| {
            let instruction = match line.strip_prefix('@') {
                Some(guarded) => guarded.split_once(' ').map_or("", |(_, instruction)| instruction),
                None => line,
            };
            let word = instruction.split_whitespace().next().unwrap_or_default();
            ACCESSES.iter().any(|access| word.starts_with(access))
                && !ELSEWHERE.iter().any(|space| word.contains(space))
        })
        .map(str::to_owned)
}

/// The number that ends where `unit` begins.
fn number_before(text: &str, unit: &str) -> Option<u32> {
    let text = &text[..text.find(unit)?];
    text[text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..].parse().ok()
}

/// The directive `.maxntid x` of an entry.
fn threads_of(ptx: &str, symbol: &str) -> Option<u32> {
    let entry = entry_of(ptx, symbol)?;
    let rest = entry[..entry.find('{')?].split(".maxntid ").nth(1)?;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// Messages of ptxas that say that it serialised wgmma or had to add waits (C7510 to C7519), or that it left setmaxnreg out, and other warnings of
/// the compiler.
pub fn warnings(log: &str) -> (Vec<String>, Vec<String>) {
    let (mut serialised, mut others) = (Vec::new(), Vec::new());
    for line in log.lines() {
        if line.contains("(C751") || line.contains("'setmaxnreg' ignored") {
            serialised.push(
                line.trim_start_matches("ptxas info").trim_start_matches([' ', ':']).to_owned(),
            );
        } else if line.contains("warning") && !line.contains("Remark") {
            others.push(line.to_owned());
        }
    }
    (serialised, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "ptxas info    : (C7519) warpgroup.arrive is injected in function '_Z1a'\n\
        ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function '_Z1a' for 'sm_90a'\n\
        ptxas info    : Function properties for _Z1a\n\
        ptxas         .     128 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
        ptxas info    : Used 255 registers, used 1 barriers, 128 bytes cumulative stack size, 1024 bytes smem\n\
        ptxas info    : Compile time = 1.0 ms\n\
        ptxas info    : Compiling entry function '_Z1ab' for 'sm_90a'\n\
        ptxas info    : Function properties for _Z1ab\n\
        ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 8 registers\n";

    const PTX: &str = ".visible .entry _Z1ab(\n.param .u64 x\n)\n.maxntid 64, 1, 1\n{ }\n.visible .entry _Z1a(\n)\n.maxntid 256\n{ }";

    #[test]
    fn figures_are_those_of_the_symbol_and_not_of_one_that_it_begins() {
        let found = figures(LOG, PTX, &["_Z1a".to_owned(), "_Z1ab".to_owned(), "_Z1c".to_owned()]);
        let a = Figures {
            registers: 255,
            shared: 1024,
            stack: 128,
            spill_stores: 12,
            spill_loads: 16,
            threads: 256,
            ..Figures::default()
        };
        assert_eq!(
            found,
            [Some(a), Some(Figures { registers: 8, threads: 64, ..Figures::default() }), None]
        );
    }

    #[test]
    fn registers_that_warpgroups_take_must_be_there() {
        let entry = "setmaxnreg.dec.sync.aligned.u32 40;\nsetmaxnreg.inc.sync.aligned.u32 232;";
        let moved = moved_registers(entry);
        assert_eq!(moved, Some((40, 232)));
        let figures = |registers| Figures { registers, threads: 384, moved, ..Figures::default() };
        assert!(!figures(168).takes_too_many());
        assert!(figures(160).takes_too_many());
        assert_eq!(moved_registers("setmaxnreg.dec.sync.aligned.u32 40;"), None);
    }

    #[test]
    fn memory_is_not_touched_before_the_kernel_ahead_has_ended() {
        let early = |text: &str| {
            early_access(&format!("{text}\n\tgriddepcontrol.wait;\n\tst.global.u32 [%rd1], %r1;"))
        };
        assert_eq!(early("ld.param.u64 %rd1, [k_param_0];\n\tst.shared.u32 [%r1], %r2;"), None);
        assert_eq!(
            early("\t@%p1 ld.global.nc.u32 %r1, [%rd1];").as_deref(),
            Some("@%p1 ld.global.nc.u32 %r1, [%rd1];")
        );
        assert!(early("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];").is_some());
        assert_eq!(early_access("ld.global.u32 %r1, [%rd1];"), None);
    }

    #[test]
    fn messages_on_serialised_wgmma_are_told_from_other_warnings() {
        let (serialised, others) = warnings(&format!("a.cu(3): warning #177-D: variable\n{LOG}"));
        assert_eq!(serialised, ["(C7519) warpgroup.arrive is injected in function '_Z1a'"]);
        assert_eq!(others, ["a.cu(3): warning #177-D: variable"]);
    }
}
