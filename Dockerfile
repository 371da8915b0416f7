# The image: one binary on a base without a shell, as a user without rights.
#
#   docker build --tag wechat-sidecar .
#
# Tags can be moved. To pin by digest, look the digests up once (docker buildx imagetools inspect IMAGE) and give them:
#
#   docker build --tag wechat-sidecar \
#     --build-arg RUST_IMAGE=rust:1.95.0-slim-bookworm@sha256:... \
#     --build-arg BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:... .
#
# Both are Debian 12: the binary needs the C library it was built against, or a newer one.
# tests/image.sh runs the binary in an empty root with just what it finds in BASE_IMAGE, and holds this file to it.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# The dependencies alone, with an empty crate: this layer stays as long as Cargo.toml and Cargo.lock do.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs \
 && cargo build --release --locked
COPY src ./src
# Touched, because cargo goes by time and a copied file may be older than the empty one it built.
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked

FROM ${BASE_IMAGE}
COPY --from=build /build/target/release/wechat-sidecar /wechat-sidecar
# "nonroot" of the base image, as a number: Kubernetes' runAsNonRoot cannot check a name.
USER 65532:65532
# Both listen on loopback by default, which an app in the same pod or network namespace reaches and nobody else does.
# To be reached from elsewhere, set WECHAT_SIDECAR_LISTEN=0.0.0.0:7200 and guard the port: whoever reaches it can act
# as the account.
EXPOSE 7200 7201
# Healthy means: every account has a token that lives.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["/wechat-sidecar", "wait", "--timeout", "2s"]
ENTRYPOINT ["/wechat-sidecar"]
CMD ["run"]
