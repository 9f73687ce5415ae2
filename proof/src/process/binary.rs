//! Where the program under test lies.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::{Failure, Result, report::During};

/// The program under test: the given one, or the one that was built along with
/// this executable, be that a program or a test. Its path is absolute: members
/// have working directories of their own.
///
/// # Errors
/// When there is none.
pub fn find_binary(given: Option<&Path>) -> Result<PathBuf> {
    let found = match given {
        Some(path) => fs::canonicalize(path).ok().filter(|path| path.is_file()),
        None => {
            let own = env::current_exe().during("find this executable")?;
            let name = format!("metastore{}", env::consts::EXE_SUFFIX);
            // Tests and examples lie one directory below the programs.
            own.ancestors().skip(1).take(2).map(|dir| dir.join(&name)).find(|path| path.is_file())
        }
    };
    found.ok_or_else(|| {
        let place = given.map_or("beside this executable".to_owned(), |p| p.display().to_string());
        Failure::failed(format!("no metastore program {place}; build it, or name it: --metastore"))
    })
}
