//! stub
use crate::credentials::{AppId, Secret, SecretOrigin};
use crate::token::source::Endpoint;
/// One WeChat account as it was configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its public name.
    pub appid: AppId,
    /// Its AppSecret.
    pub secret: Secret,
    /// Where the secret came from.
    pub secret_origin: SecretOrigin,
    /// Which endpoint issues its token.
    pub endpoint: Endpoint,
}
