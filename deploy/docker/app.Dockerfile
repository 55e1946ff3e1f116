# The consumer with the coroutines of an application: its package is installed beside iu-listen. Build it where the
# application is:
#
#     docker build -f app.Dockerfile --build-arg APP=shop.targets -t shop-listen:1 .
#
# Both images may be given by digest: --build-arg IU_LISTEN=registry.example/iu-listen@sha256:..., and BASE as the
# image of iu-listen was built with.
ARG BASE=python:3.13-slim
ARG IU_LISTEN=iu-listen:0.1.0

FROM ${IU_LISTEN} AS iu-listen

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=iu-listen /opt/iu-listen /opt/iu-listen
WORKDIR /src
COPY . .
# The environment of the image has no pip of its own.
RUN pip --python /opt/iu-listen/bin/python install .

FROM ${IU_LISTEN}
ARG APP
COPY --from=build /opt/iu-listen /opt/iu-listen
ENV IU_LISTEN_APP=${APP}
