//! Connections to Redis, however it is set up: [`Link`] for commands, [`listen`] for what is published.

use ::redis::aio::{MultiplexedConnection, PubSub};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode,
};

use super::address::{Node, Way};
use super::fault::Fault;
use super::{CONNECT, Config, PATIENCE};

/// A connection for commands, which any number may use at once.
#[derive(Clone)]
pub(super) enum Link {
    One(MultiplexedConnection),
    Cluster(Box<ClusterConnection>),
}

impl Link {
    /// Connects, and has Redis answer: one that is paused takes connections, too.
    pub(super) async fn connect(config: &Config) -> Result<Self, Fault> {
        let link = match &config.address.way {
            Way::Cluster(nodes) => {
                Self::cluster(config, nodes).await.map(|link| Self::Cluster(Box::new(link)))
            }
            Way::One(_) | Way::Socket(_) | Way::Sentinels { .. } => Self::one(config).await.map(Self::One),
        };
        link.map_err(|error| Fault::of(&error, &config.address))
    }

    /// Sends a command; how long it may take is the caller's affair.
    pub(super) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::One(link) => command.query_async(link).await,
            Self::Cluster(link) => command.query_async(&mut **link).await,
        }
    }

    async fn one(config: &Config) -> RedisResult<MultiplexedConnection> {
        let client = client(config, None).await?;
        let patient = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut link = client.get_multiplexed_async_connection_with_config(&patient).await?;
        let _: ::redis::Value = ::redis::cmd("PING").query_async(&mut link).await?;
        Ok(link)
    }

    async fn cluster(config: &Config, nodes: &[Node]) -> RedisResult<ClusterConnection> {
        let nodes = nodes.iter().map(|node| info(config, address_of(config, node)));
        let mut builder = ClusterClientBuilder::new(nodes.collect::<RedisResult<Vec<_>>>()?)
            .connection_timeout(CONNECT)
            .response_timeout(PATIENCE)
            .tcp_settings(tcp())
            // A command goes again by itself only to where its slot moved; whoever asked has its own patience.
            .retries(2);
        if let Some(certificates) = certificates(config) {
            builder = builder.certs(certificates);
        }
        builder.build()?.get_async_connection().await
    }
}

/// Listens on these channels. In a Cluster every node hears what is published at any.
pub(super) async fn listen(config: &Config, channels: &[&str]) -> Result<PubSub, Fault> {
    let node = match &config.address.way {
        // Another one with each attempt: this one may be the one that is down.
        Way::Cluster(nodes) => fastrand::choice(nodes),
        Way::One(_) | Way::Socket(_) | Way::Sentinels { .. } => None,
    };
    let listening = async {
        let mut listening = client(config, node).await?.get_async_pubsub().await?;
        listening.subscribe(channels).await?;
        Ok(listening)
    };
    listening.await.map_err(|error| Fault::of(&error, &config.address))
}

/// A client of the one server to talk to: `node`, the one that is named, or the one the Sentinels name.
async fn client(config: &Config, node: Option<&Node>) -> RedisResult<Client> {
    let address = match (&config.address.way, node) {
        (_, Some(node)) | (Way::One(node), None) => address_of(config, node),
        (Way::Socket(path), None) => ConnectionAddr::Unix(path.clone()),
        (Way::Sentinels { nodes, primary }, None) => return primary_of(config, nodes, primary).await,
        (Way::Cluster(nodes), None) => address_of(config, &nodes[0]),
    };
    let info = info(config, address)?;
    match certificates(config) {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

/// Asks the Sentinels, without a password; ours is for the primary. The library checks that it says to be one.
async fn primary_of(config: &Config, nodes: &[Node], primary: &str) -> RedisResult<Client> {
    let address = &config.address;
    let sentinels = nodes.iter().map(|node| address_of(config, node));
    let mut builder = SentinelClientBuilder::new(sentinels, primary, SentinelServerType::Master)?
        .set_client_to_redis_db(address.db.into())
        .set_client_to_redis_tcp_settings(tcp());
    if let Some(user) = &address.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &address.password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if address.tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates(config) {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    builder.build()?.async_get_client().await
}

fn address_of(config: &Config, Node { host, port }: &Node) -> ConnectionAddr {
    let (host, port) = (host.clone(), *port);
    if config.address.tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn info(config: &Config, to: ConnectionAddr) -> RedisResult<ConnectionInfo> {
    let address = &config.address;
    let mut who = RedisConnectionInfo::default().set_db(address.db.into()).set_skip_set_lib_name();
    if let Some(user) = &address.user {
        who = who.set_username(user);
    }
    if let Some(password) = &address.password {
        who = who.set_password(password.expose());
    }
    Ok(to.into_connection_info()?.set_redis_settings(who).set_tcp_settings(tcp()))
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn certificates(config: &Config) -> Option<TlsCertificates> {
    let root_cert = config.roots.clone().filter(|_| config.address.tls)?;
    Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert) })
}
