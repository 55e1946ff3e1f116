# The consumer with the coroutines of an application, whose package is installed beside iu-listen. Build it in the
# directory of the application:
#
#     docker build -f app.Dockerfile --build-arg APP=shop.targets -t shop-listen:1 .
#
# Both images may be given by digest: --build-arg IU_LISTEN=registry.example/iu-listen@sha256:..., and the same BASE as
# for the image of iu-listen.
ARG BASE=python:3.13-slim
ARG IU_LISTEN=iu-listen:0.2.0

FROM ${IU_LISTEN} AS iu-listen

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
COPY --from=iu-listen /opt/iu-listen /opt/iu-listen
WORKDIR /src
COPY . .
# The virtual environment of the image contains no pip.
RUN pip --python /opt/iu-listen/bin/python install .

FROM ${IU_LISTEN}
ARG APP
COPY --from=build /opt/iu-listen /opt/iu-listen
ENV IU_LISTEN_APP=${APP}
