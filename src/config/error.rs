//! What is wrong with a configuration, where it stands, and what to write instead.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

/// Why there is no [`Config`](super::Config).
#[derive(Debug)]
pub enum Error {
    /// The file could not be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was read and is wrong.
    Mistakes {
        /// Path of the file.
        origin: String,
        /// The file's text, which mistakes point into.
        text: String,
        /// What was found, at least one.
        mistakes: Vec<Mistake>,
    },
    /// The flags of `run` are wrong.
    Flags {
        /// The flags, as one line, which mistakes point into.
        line: String,
        /// What was found, at least one.
        mistakes: Vec<Mistake>,
    },
}

/// Who has to do what about an [`Error`]; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such file.
    Missing,
    /// The file may not be read.
    Permission,
    /// The file is wrong.
    Configuration,
    /// The command line is wrong.
    Usage,
}

/// One mistake of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The key as a path, such as `listener.max_header`; a flag such as `--listen` where no file is used; empty where the
    /// text is not TOML.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub help: String,
    /// Bytes of the text that are wrong; `None` where something is missing from the whole.
    pub span: Option<Range<usize>>,
    /// A second place that takes part, and what is to be said there.
    pub other: Option<(Range<usize>, String)>,
}

impl Error {
    /// What kind of error this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreadable { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::Missing,
                io::ErrorKind::PermissionDenied => ErrorKind::Permission,
                _ => ErrorKind::Configuration,
            },
            Self::Mistakes { .. } => ErrorKind::Configuration,
            Self::Flags { .. } => ErrorKind::Usage,
        }
    }

    /// The mistakes found; none where the file could not be read.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Mistakes { mistakes, .. } | Self::Flags { mistakes, .. } => mistakes,
        }
    }

    /// The whole error for an operator, several lines, with colours for a terminal.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let reports: Vec<String> = match self {
            Self::Unreadable { path, source } => {
                let (problem, help) = unreadable(source);
                let report = Level::ERROR
                    .primary_title(format!("{}: {problem}", path.display()))
                    .element(Level::HELP.message(help));
                vec![renderer.render(&[report])]
            }
            Self::Mistakes {
                origin,
                text,
                mistakes,
            } => mistakes
                .iter()
                .map(|m| m.render(&renderer, origin, text))
                .collect(),
            Self::Flags { line, mistakes } => mistakes
                .iter()
                .map(|m| m.render(&renderer, "command line", line))
                .collect(),
        };
        reports.join("\n\n")
    }
}

/// Problem and next step for a file that could not be read.
fn unreadable(source: &io::Error) -> (String, &'static str) {
    match source.kind() {
        io::ErrorKind::NotFound => (
            "there is no such file".to_owned(),
            "name another with --config, or run without one: tollgate run --listen 0.0.0.0:8443 --upstream HOST:PORT --trusted CIDR",
        ),
        io::ErrorKind::PermissionDenied => (
            "may not be read by this user".to_owned(),
            "make it readable, for instance with chmod 644; it holds no secret",
        ),
        io::ErrorKind::InvalidData => (
            "is not a text file in UTF-8".to_owned(),
            "a configuration is written in TOML (https://toml.io)",
        ),
        _ => (
            source.to_string(),
            "a configuration is a regular file in TOML",
        ),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Mistakes { .. } | Self::Flags { .. } => None,
        }
    }
}

impl Mistake {
    /// Line of the first wrong byte, from 1; `None` where something is missing from the whole.
    #[must_use]
    pub fn line(&self, text: &str) -> Option<usize> {
        let start = self.span.as_ref()?.start.min(text.len());
        Some(
            text.as_bytes()[..start]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count()
                + 1,
        )
    }

    fn render(&self, renderer: &Renderer, origin: &str, text: &str) -> String {
        let title = if self.key.is_empty() {
            self.problem.clone()
        } else {
            format!("{}: {}", self.key, self.problem)
        };
        let title = Level::ERROR.primary_title(title);
        let report = match &self.span {
            Some(span) => {
                let mut snippet = Snippet::source(text)
                    .path(origin)
                    .annotation(AnnotationKind::Primary.span(span.clone()));
                if let Some((place, label)) = &self.other {
                    snippet = snippet
                        .annotation(AnnotationKind::Context.span(place.clone()).label(label));
                }
                title.element(snippet)
            }
            None => title.element(Origin::path(origin)),
        };
        renderer.render(&[report.element(Level::HELP.message(&self.help))])
    }
}
