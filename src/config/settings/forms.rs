//! The forms of a setting: flag, variable and file key, all from one name.

use super::{ENV_PREFIX, Fallback, Forms, Kind, Setting};

impl Setting {
    /// The flag without its dashes, such as `foo-bar`.
    #[must_use]
    pub fn flag(&self) -> String {
        // `simulate` has a listener and an appid of its own, with other defaults than the sidecar's.
        self.key.strip_prefix("sim_").unwrap_or(self.key).replace('_', "-")
    }

    /// The variable, such as `WECHAT_SIDECAR_FOO_BAR`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// Whether a command line may have it.
    #[must_use]
    pub fn is_flag(&self) -> bool {
        self.forms != Forms::NoFlag
    }

    /// Whether the environment may have it.
    #[must_use]
    pub fn is_env(&self) -> bool {
        self.forms != Forms::FlagOnly
    }

    /// Whether a file may have it.
    #[must_use]
    pub fn is_file_key(&self) -> bool {
        matches!(self.forms, Forms::All | Forms::NoFlag)
    }

    /// Whether its value must never be seen.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }

    /// The help with what holds by default.
    #[must_use]
    pub fn help_text(&self) -> String {
        match self.default {
            Fallback::None => self.help.to_owned(),
            Fallback::Text(text) | Fallback::Found(text) => format!("{} [default: {text}]", self.help),
        }
    }
}
