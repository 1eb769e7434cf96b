/* Search in a site that is opened from a folder. Browsers start no worker for file:// pages, so
   this class runs the search worker's script in a hidden frame instead. Pages of a server keep the
   browser's own Worker. The name of this file and of the class are what Material looks for. */
if (location.protocol === "file:") {
    window.IFrameWorker = class extends EventTarget {
        constructor(url) {
            super();
            const frame = document.createElement("iframe");
            frame.hidden = true;
            document.body.appendChild(frame);
            this.inside = frame.contentWindow;
            this.inside.postMessage = (data) =>
                this.dispatchEvent(new MessageEvent("message", { data }));
            const script = frame.contentDocument.createElement("script");
            script.src = new URL(url, location.href).href;
            this.loaded = new Promise((resolve) => script.addEventListener("load", resolve));
            frame.contentDocument.head.appendChild(script);
        }

        postMessage(data) {
            this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
        }
    };
    window.Worker = window.IFrameWorker;
}
