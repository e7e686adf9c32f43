# Outrigger's images: the two binaries on an empty file system, as user 1337.
#
#   docker build -t outrigger .                      the proxy and outrigger-init
#   docker build -t outrigger-istio --target istio \
#     --build-arg ISTIO_PROXY=docker.io/istio/proxyv2:VERSION .
#                                                    for Istio's injector: pilot-agent starts Outrigger in Envoy's place
#
# From binaries that are there already, without a compiler and without pulling anything:
#
#   deploy/image/assemble image/ target/release/outrigger target/release/outrigger-init
#   docker build -t outrigger --build-context root=image/ .
#
# `root` replaces the stage of that name, `agent` (with Istio's two files at their places) that of Istio's image.
ARG RUST=docker.io/library/rust:1.95.0-bookworm
# Of the version of the istiod that it talks to.
ARG ISTIO_PROXY=docker.io/istio/proxyv2:1.30.0

FROM ${RUST} AS build
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates iptables nftables
WORKDIR /src
COPY . .
ENV RUSTUP_TOOLCHAIN=1.95.0
# The proxy is static; with --target, build scripts and macros are not built with these flags. outrigger-init looks up
# users, which glibc does by libraries, and has iptables beside it, which need them too.
RUN target=$(rustc -vV | sed -n 's/^host: //p') && \
    RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$target" --package outrigger && \
    cargo build --release --locked --package iptables-init && \
    deploy/image/assemble /image "target/$target/release/outrigger" target/release/outrigger-init

FROM scratch AS root
COPY --from=build /image /

FROM ${ISTIO_PROXY} AS agent

FROM scratch AS common
COPY --from=root / /
ENV PATH=/usr/local/bin:/usr/sbin
LABEL org.opencontainers.image.title="Outrigger" \
      org.opencontainers.image.description="A data-plane proxy that takes Envoy's place" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 1337:1337

FROM common AS istio
COPY --from=agent /usr/local/bin/pilot-agent /usr/local/bin/pilot-agent
COPY --from=agent /var/lib/istio/envoy/envoy_bootstrap_tmpl.json /var/lib/istio/envoy/envoy_bootstrap_tmpl.json
ENTRYPOINT ["/usr/local/bin/pilot-agent"]

FROM common AS outrigger
ENTRYPOINT ["/usr/local/bin/outrigger"]
CMD ["-c", "/etc/outrigger/bootstrap.yaml"]
