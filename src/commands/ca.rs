//! `ca`: makes a local CA, or finds it, and says how each runtime is told to trust it.

use wechat_sidecar::ca::{self, CERTIFICATE, KEY, Made};
use wechat_sidecar::config::cli::Ca;

use super::{complain, say};

pub(super) fn ca(options: &Ca) -> u8 {
    let made = match ca::make(&options.folder, &options.hosts) {
        Ok(made) => made,
        Err(error) => {
            complain(&error);
            return 1;
        }
    };
    let folder = ca::absolute(&options.folder);
    let begin = match made {
        Made::New => "Made a local CA in",
        Made::Found => "Found the local CA in",
    };
    let hosts = options.hosts.certified().join(", ");
    say(&format!("{begin} {}. It is good for {hosts}, and for nothing else.", folder.display()));
    say(&advice(&folder.display().to_string()));
    0
}

fn advice(folder: &str) -> String {
    let certificate = format!("{folder}/{CERTIFICATE}");
    format!(
        "
  {certificate}   for apps to trust; no secret, copy it to where they can read it
  {folder}/{KEY}   for the sidecar alone: whoever reads it can pose as these hosts to your apps

1. Start the sidecar with
     --ca-dir {folder}
   and, to be api.weixin.qq.com itself, with
     --tls-listen 127.0.0.1:443

2. Point the app at it, one of
     HTTPS_PROXY=http://127.0.0.1:7200         its other hosts go into NO_PROXY: they are refused here
     127.0.0.1 api.weixin.qq.com               in /etc/hosts or a pod's hostAliases, with --tls-listen;
                                               then the sidecar needs --upstream-address, or
                                               --upstream https://api2.weixin.qq.com

3. Tell its runtime to trust the CA:
     Node.js           NODE_EXTRA_CA_CERTS={certificate}
     Java              keytool -importcert -noprompt -cacerts -storepass changeit \\
                         -alias wechat-sidecar -file {certificate}
     Debian, .NET      cp {certificate} /usr/local/share/ca-certificates/wechat-sidecar.crt \\
                         && update-ca-certificates
   These replace the trust in all others, so give them both:
     cat /etc/ssl/certs/ca-certificates.crt {certificate} > bundle.pem
     Python requests   REQUESTS_CA_BUNDLE=/path/to/bundle.pem
     Python, httpx     SSL_CERT_FILE=/path/to/bundle.pem
     PHP               curl.cainfo and openssl.cafile = /path/to/bundle.pem, in php.ini
     curl              CURL_CA_BUNDLE=/path/to/bundle.pem
     Go                SSL_CERT_FILE=/path/to/bundle.pem"
    )
}
