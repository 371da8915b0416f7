//! What WeChat's error codes are called: [`Errcode`] and the `errmsg` that stands beside it (`wechat-api.md` 1-3).
//!
//! The texts are the documented or captured ones where there is one; clients must decide on the code alone.

use serde::Serialize;

/// An `errcode` as WeChat writes it into a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Errcode(pub i64);

impl Errcode {
    /// The token is not, or no longer, the latest; at the token endpoint a wrong AppSecret.
    pub const NOT_LATEST: Self = Self(40001);
    /// `grant_type` is not what the endpoint takes.
    pub const GRANT_TYPE: Self = Self(40002);
    /// No such user for this account.
    pub const OPENID: Self = Self(40003);
    /// No such media.
    pub const MEDIA_ID: Self = Self(40007);
    /// No such account.
    pub const APPID: Self = Self(40013);
    /// The token was never one.
    pub const INVALID_TOKEN: Self = Self(40014);
    /// The login code is wrong.
    pub const CODE: Self = Self(40029);
    /// The user's refresh token is wrong.
    pub const REFRESH_TOKEN: Self = Self(40030);
    /// The AppSecret is wrong.
    pub const SECRET: Self = Self(40125);
    /// `scene` of a mini program code is missing or too long.
    pub const SCENE: Self = Self(40129);
    /// The login code was used before.
    pub const CODE_USED: Self = Self(40163);
    /// The caller's address is not on the IP whitelist.
    pub const IP: Self = Self(40164);
    /// The call carries no token.
    pub const TOKEN_MISSING: Self = Self(41001);
    /// The call carries no appid.
    pub const APPID_MISSING: Self = Self(41002);
    /// The call carries no AppSecret.
    pub const SECRET_MISSING: Self = Self(41004);
    /// An upload carries no media part.
    pub const MEDIA_MISSING: Self = Self(41005);
    /// The call carries no `media_id`.
    pub const MEDIA_ID_MISSING: Self = Self(41006);
    /// The call carries no login code.
    pub const CODE_MISSING: Self = Self(41008);
    /// `page` of a mini program code is not a page.
    pub const PAGE: Self = Self(41030);
    /// The token ran out.
    pub const EXPIRED: Self = Self(42001);
    /// The endpoint takes GET only.
    pub const REQUIRE_GET: Self = Self(43001);
    /// The endpoint takes POST only.
    pub const REQUIRE_POST: Self = Self(43002);
    /// The uploaded file is empty.
    pub const MEDIA_EMPTY: Self = Self(44001);
    /// The POST body is empty.
    pub const BODY_EMPTY: Self = Self(44002);
    /// The day's quota is used up.
    pub const DAY_QUOTA: Self = Self(45009);
    /// The minute's quota is used up.
    pub const MINUTE_QUOTA: Self = Self(45011);
    /// The body is not JSON.
    pub const NOT_JSON: Self = Self(47001);
    /// The month's quota resets are used up.
    pub const RESETS_USED: Self = Self(48006);
    /// No request with this rid.
    pub const RID_UNKNOWN: Self = Self(76001);
    /// No rid was given.
    pub const RID_INVALID: Self = Self(76002);
    /// The login code of a multi-platform app is wrong, or was used.
    pub const DONUT_CODE: Self = Self(10_001_001);
    /// There, the appid is missing or another account's than the token.
    pub const DONUT_APPID: Self = Self(10_001_002);
    /// There, the AppSecret is missing or wrong.
    pub const DONUT_SECRET: Self = Self(10_001_003);
    /// There, `grant_type` is not `authorization_code`.
    pub const DONUT_GRANT_TYPE: Self = Self(10_001_004);

    /// The text that stands beside the code. `caller_ip` is the address WeChat would name in 40164.
    #[must_use]
    pub fn errmsg(self, caller_ip: &str) -> String {
        let text = match self.0 {
            -1 => "system error",
            0 => "ok",
            40001 => {
                "invalid credential, access_token is invalid or not latest, could get access_token by \
                 getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r"
            }
            40002 => "invalid grant_type",
            40003 => "invalid openid",
            40007 => "invalid media_id",
            40013 => "invalid appid",
            40014 => "invalid access_token",
            40029 => "invalid code",
            40030 => "invalid refresh_token",
            40033 => "invalid charset, should not contain \\uxxxx in the request body",
            40125 => "invalid appsecret",
            40129 => "invalid scene",
            40163 => "code been used",
            40164 | 61004 => {
                // Both are documented for the same cause; 40164's sample names the address (`wechat-api.md` 1).
                return format!("invalid ip {caller_ip} ipv6 ::ffff:{caller_ip}, not in whitelist");
            }
            40243 => "appsecret is frozen, please unfreeze it",
            41001 => "access_token missing",
            41002 => "appid missing",
            41004 => "appsecret missing",
            41005 => "media data missing",
            41006 => "media_id missing",
            41008 => "missing code",
            41030 => "invalid page",
            42001 => "access_token expired",
            43001 => "require GET method",
            43002 => "require POST method",
            43003 => "require https",
            44001 => "empty media data",
            44002 => "empty post data",
            45009 => "reach max api daily quota limit",
            45011 => "api minute-quota reach limit, mustslower, retry next minute",
            47001 => "data format error",
            48001 => "api unauthorized",
            48006 => "forbid to clear quota because of reaching the limit",
            50004 => "token api is forbidden for this account",
            50007 => "account is frozen",
            76001 => "rid not found",
            76002 => "rid is empty or malformed",
            89503 => "the call from this ip needs the administrator's confirmation, please wait",
            89506 => "the administrator refused this ip, retry after 24 hours",
            89507 => "the administrator refused this ip, retry after 1 hour",
            10_001_001 => "invalid code",
            10_001_002 => "invalid appid",
            10_001_003 => "invalid appsecret",
            10_001_004 => "invalid grant_type",
            _ => "error",
        };
        text.to_owned()
    }
}
