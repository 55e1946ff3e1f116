// The search runs in a worker. Browsers start no worker from a folder, so there its script runs in a hidden frame.
if (location.protocol === "file:") {
    window.Worker = class {
        constructor(script) {
            this.frame = document.createElement("iframe");
            this.frame.hidden = true;
            this.frame.srcdoc = "<body>";
            this.started = new Promise((started, failed) => {
                this.frame.onload = () => {
                    const inner = this.frame.contentWindow;
                    inner.postMessage = (data) => this.onmessage?.({ data });
                    const element = inner.document.createElement("script");
                    element.src = script;
                    element.onload = () => started(inner);
                    element.onerror = failed;
                    inner.document.body.append(element);
                };
            });
            this.started.catch((error) => this.onerror?.(error));
            document.body.append(this.frame);
        }

        postMessage(data) {
            this.started.then((inner) => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
        }

        terminate() {
            this.frame.remove();
        }
    };
}
