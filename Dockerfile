# One image for all functions; which one it serves is the argument: docker run IMAGE restart-loop-killer
#
#   docker build --tag REGISTRY/kreflex:VERSION . && docker push REGISTRY/kreflex:VERSION
#
# The base is named by tag here; name it by digest in a build that you want to repeat: --build-arg PYTHON=python@sha256:…
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /app
COPY requirements-image.lock .
RUN python -m pip install --disable-pip-version-check --no-cache-dir --no-deps --require-hashes --only-binary=:all: --no-compile --target packages --requirement requirements-image.lock
COPY shared/kreflex kreflex
COPY functions functions
# A function is started for one event, so that it must not compile first; and its file system is read-only. The files don't change any
# more, so Python need not look whether they have.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash packages kreflex functions && rm requirements-image.lock

FROM ${PYTHON}
# For rollback, where Git owns a release (docs/adr/0023). ssh asks who it is that runs it, so the number has a name.
RUN apt-get update && apt-get install --yes --no-install-recommends git openssh-client && rm -rf /var/lib/apt/lists/* && useradd --uid 65532 --no-create-home --shell /usr/sbin/nologin kreflex
COPY --from=build /app /app
WORKDIR /app
ENV PYTHONPATH=/app:/app/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# As a number, so that a kubelet can see that it is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "kreflex"]
