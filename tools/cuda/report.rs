//! The table.

use crate::builder::Outcome;
use crate::figures::Figures;

/// Prints a line an instance and a cell a chip: registers, occupancy, shared memory a block, and local memory where there is any.
pub fn table(outcomes: &[Outcome]) {
    println!(
        "A cell: registers a thread, warps of the most that registers and threads allow, shared memory that each of so many blocks may have;\n\
         !N: N bytes of local memory a thread."
    );
    let mut at = 0;
    while at < outcomes.len() {
        let source = outcomes[at].source;
        let of_file =
            outcomes[at..].iter().take_while(|outcome| outcome.source.name == source.name).count();
        let of_file = &outcomes[at..at + of_file];
        at += of_file.len();
        let width = source.instances.iter().map(String::len).max().unwrap_or(0);
        print!("\n{:width$}  {:>7}", source.name, "threads");
        for outcome in of_file {
            print!("  {:<18}", outcome.chip.name);
        }
        println!();
        for (i, instance) in source.instances.iter().enumerate() {
            let first =
                of_file.iter().find_map(|outcome| Some(outcome.result.as_ref().ok()?[i].threads));
            print!(
                "{instance:width$}  {:>7}",
                first.map_or_else(String::new, |threads| threads.to_string())
            );
            for outcome in of_file {
                let cell = outcome
                    .result
                    .as_ref()
                    .map_or("error".to_owned(), |all| cell(outcome, &all[i]));
                print!("  {cell:<18}");
            }
            println!();
        }
    }
    println!();
}

fn cell(outcome: &Outcome, figures: &Figures) -> String {
    let occupancy = outcome.chip.occupancy(figures.registers, figures.threads);
    let local = match figures.local() {
        0 => String::new(),
        bytes => format!(" !{bytes}"),
    };
    format!(
        "{:3} {:3}% {:>4}K{local}",
        figures.registers,
        occupancy.percent,
        occupancy.shared / 1024
    )
}
