// For pages that embed "Try it": <iframe class="sv-live" src=".../live/index.html?prompt=...&adapter=..." loading="lazy">.
// The frame tells its height and is told the theme by messages, since a page from disk may not look into another.
(() => {
  const root = document.documentElement, frames = () => [...document.querySelectorAll("iframe.sv-live")];
  const tell = frame => frame.contentWindow && frame.contentWindow.postMessage(
    { live: "theme", theme: root.dataset.theme, ground: getComputedStyle(document.body).backgroundColor }, "*");
  addEventListener("message", event => {
    const frame = frames().find(one => one.contentWindow === event.source);
    if (!frame || !event.data || event.data.live !== "height") return;
    frame.style.height = `${event.data.height}px`;
    tell(frame);
  });
  new MutationObserver(() => frames().forEach(tell)).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
})();
