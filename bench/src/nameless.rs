//! Takes the names of this machine out of what a report keeps: paths, the host, the user. Reports are made to be
//! published. `environment` calls it.

use std::fs;
use std::path::Path;

/// What names this machine and whoever works at it.
pub(crate) struct Nameless {
    /// The folder that commands are typed in: what lies below is written from there.
    folder: String,
    home: String,
    host: String,
    user: String,
}

/// A user's name that names nobody.
const ANYBODY: &str = "root";

impl Nameless {
    pub(crate) fn here() -> Nameless {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let folder = std::env::current_dir().map(|folder| folder.to_string_lossy().into_owned());
        Nameless {
            folder: folder.unwrap_or_default(),
            home: variable("HOME"),
            host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            user: variable("USER"),
        }
    }

    /// `text` without them. A path that leads somewhere here and not into the working folder keeps its last part.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        if self.folder.len() > 1 {
            text = text.replace(&format!("{}/", self.folder), "");
            text = with_word(&text, &self.folder, ".");
        }
        if self.home.len() > 1 {
            text = text.replace(&format!("{}/", self.home), "~/");
        }
        if self.host != "localhost" {
            text = with_word(&text, &self.host, "HOST");
        }
        if self.user != ANYBODY {
            text = with_word(&text, &self.user, "USER");
        }
        without_paths(&text)
    }
}

/// Whether a name or a path may go on with `letter`.
fn goes_on(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-_.".contains(letter)
}

/// `text` with `other` wherever `word` stands by itself.
fn with_word(text: &str, word: &str, other: &str) -> String {
    if word.is_empty() {
        return text.to_owned();
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let is_begun = before.chars().next_back().or(out.chars().next_back()).is_some_and(goes_on);
        let is_whole = !is_begun && !after.starts_with(goes_on);
        out.push_str(before);
        out.push_str(if is_whole { other } else { word });
        rest = after;
    }
    out + rest
}

/// `text` with `.../name` in place of each path from the root that leads somewhere on this machine.
fn without_paths(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('/') {
        let begins =
            !rest[..at].chars().next_back().or(out.chars().next_back()).is_some_and(|c| goes_on(c) || "/~".contains(c));
        let length = rest[at..].find(|c| c != '/' && !goes_on(c)).unwrap_or(rest.len() - at);
        let path = &rest[at..at + length];
        out.push_str(&rest[..at]);
        match path.rsplit_once('/') {
            Some((folder, name)) if begins && folder.len() > 1 && path != "/dev/null" && Path::new(folder).exists() => {
                out.push_str(".../");
                out.push_str(name);
            }
            _ => out.push_str(path),
        }
        rest = &rest[at + length..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nameless(text: &str) -> String {
        let of = |text: &str| text.to_owned();
        Nameless { folder: of("/srv/ann/roomwire"), home: of("/srv/ann"), host: of("box7"), user: of("ann") }.text(text)
    }

    #[test]
    fn paths_below_the_working_folder_are_written_from_there() {
        assert_eq!(nameless("/srv/ann/roomwire/target/release/roomwire serve"), "target/release/roomwire serve");
        assert_eq!(nameless("cd /srv/ann/roomwire && cat /srv/ann/.netrc"), "cd . && cat ~/.netrc");
        assert_eq!(nameless("/srv/ann/roomwire-old"), "~/roomwire-old");
    }

    #[test]
    fn other_paths_that_lead_somewhere_keep_their_last_part() {
        assert_eq!(
            nameless("'/proc/self/exe' --json=/proc/self/x.json >/dev/null"),
            "'.../exe' --json=.../x.json >/dev/null"
        );
        for kept in [
            "/",
            "/ws",
            "/app/roomwire-bench",
            "redis://127.0.0.1:6379/0",
            "a/b",
            "~/proc/self",
            "1/2",
            "127.0.0.1:1,127.0.0.1:2",
        ] {
            assert_eq!(nameless(kept), kept);
        }
    }

    #[test]
    fn host_and_user_go_where_they_are_words() {
        assert_eq!(nameless("--addr box7:80 ssh ann@box7"), "--addr HOST:80 ssh USER@HOST");
        assert_eq!(nameless("planned box77 box7-b"), "planned box77 box7-b");
    }
}
