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
}

impl Figures {
    /// Bytes of local memory a thread, of whatever kind. What is spilled lies in the stack frame; a place there may be stored to more
    /// than once.
    pub fn local(&self) -> u32 {
        if self.stack > 0 { self.stack } else { self.spill_stores }
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
    })
}

/// The number that ends where `unit` begins.
fn number_before(text: &str, unit: &str) -> Option<u32> {
    let text = &text[..text.find(unit)?];
    text[text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1)..].parse().ok()
}

/// The directive `.maxntid x` of an entry.
fn threads_of(ptx: &str, symbol: &str) -> Option<u32> {
    let entry = ptx
        .split(".entry ")
        .find(|entry| entry.strip_prefix(symbol).is_some_and(|rest| rest.starts_with('(')))?;
    let rest = entry[..entry.find('{')?].split(".maxntid ").nth(1)?;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// Messages of ptxas that say that it serialised wgmma or had to add waits (C7510 to C7519), and other warnings of the compiler.
pub fn warnings(log: &str) -> (Vec<String>, Vec<String>) {
    let (mut serialised, mut others) = (Vec::new(), Vec::new());
    for line in log.lines() {
        if line.contains("(C751") {
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
        };
        assert_eq!(
            found,
            [Some(a), Some(Figures { registers: 8, threads: 64, ..Figures::default() }), None]
        );
    }

    #[test]
    fn messages_on_serialised_wgmma_are_told_from_other_warnings() {
        let (serialised, others) = warnings(&format!("a.cu(3): warning #177-D: variable\n{LOG}"));
        assert_eq!(serialised, ["(C7519) warpgroup.arrive is injected in function '_Z1a'"]);
        assert_eq!(others, ["a.cu(3): warning #177-D: variable"]);
    }
}
