//! Statistics of TLS: below `listener.<address>` and `cluster.<name>`.

use crate::metrics;

metrics! {
    /// Handshakes (`ssl`).
    pub enum SslStat {
        ConnectionError: counter "connection_error",
        FailVerifyCertHash: counter "fail_verify_cert_hash",
        FailVerifyError: counter "fail_verify_error",
        FailVerifyNoCert: counter "fail_verify_no_cert",
        FailVerifySan: counter "fail_verify_san",
        Handshake: counter "handshake",
        NoCertificate: counter "no_certificate",
        OcspStapleFailed: counter "ocsp_staple_failed",
        OcspStapleOmitted: counter "ocsp_staple_omitted",
        OcspStapleRequests: counter "ocsp_staple_requests",
        OcspStapleResponses: counter "ocsp_staple_responses",
        SessionReused: counter "session_reused",
    }
}

metrics! {
    /// Contexts (`server_ssl_socket_factory`, `client_ssl_socket_factory`).
    pub enum SslFactoryStat {
        DownstreamContextSecretsNotReady: counter "downstream_context_secrets_not_ready",
        SslContextUpdateBySds: counter "ssl_context_update_by_sds",
        UpstreamContextSecretsNotReady: counter "upstream_context_secrets_not_ready",
    }
}
