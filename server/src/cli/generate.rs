//! `roomwire generate`: what packages and docs need, made from the same types as the program.

use super::{Cli, Failure};
use crate::config::show;
use clap::{Args, CommandFactory as _, ValueEnum as _};
use clap_complete::Shell;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// What to write
    what: What,
    /// The directory to write into; made if it is missing
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// Man pages: the commands (section 1), the configuration file (section 5)
    Man,
    /// Completions for bash, zsh, fish, elvish and powershell
    Completions,
    /// configuration.md, the reference of every key
    Reference,
    /// roomwire.toml, with every key and its default
    Example,
}

pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let dir = &args.dir;
    write(args.what, dir).map_err(|error| Failure::runtime(format!("{}: {error}", dir.display())))
}

fn write(what: What, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    match what {
        What::Man => {
            clap_mangen::generate_to(Cli::command(), dir)?;
            std::fs::write(dir.join("roomwire.toml.5"), show::manual())
        }
        What::Completions => {
            for shell in Shell::value_variants() {
                clap_complete::generate_to(*shell, &mut Cli::command(), "roomwire", dir)?;
            }
            Ok(())
        }
        What::Reference => std::fs::write(dir.join("configuration.md"), show::reference()),
        What::Example => std::fs::write(dir.join("roomwire.toml"), show::example()),
    }
}
