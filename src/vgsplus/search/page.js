// Of each part of the page: `element`, `trigger` and `watch` are Gradio's. One sound plays at a time.
const player = (window.vgsplusPlayer ??= new Audio());
// Recordings are raw, as those of corpora: what browsers do for calls changes them.
const devices = navigator.mediaDevices; // none without HTTPS
if (devices && !devices.raw) {
  const raw = { autoGainControl: false, echoCancellation: false, noiseSuppression: false };
  const ask = devices.getUserMedia.bind(devices);
  devices.raw = true;
  devices.getUserMedia = ({ audio }) => ask({ audio: { ...(audio === true ? {} : audio), ...raw } });
}
const mark = () => {
  for (const button of document.querySelectorAll("[data-play]")) {
    const playing = !player.paused && player.dataset.sound === button.dataset.play;
    button.setAttribute("aria-pressed", String(playing));
    button.setAttribute("aria-label", playing ? "Stop" : "Play");
  }
};
// The map and the bar of the moment that plays, or the map of the complete sound.
const follow = () => {
  const pair = document.querySelector(".pair[data-step]");
  const bars = pair?.querySelectorAll(".times span") ?? [];
  const playing = !player.paused && player.dataset.sound === pair?.dataset.sound;
  const moment = playing ? Math.min(1 + Math.floor(player.currentTime / pair.dataset.step), bars.length) : 0;
  pair?.style.setProperty("--moment", moment);
  bars.forEach((bar, index) => bar.classList.toggle("now", index + 1 === moment));
  if (!player.paused) requestAnimationFrame(follow);
};
for (const event of ["play", "pause", "ended"]) player["on" + event] = () => (mark(), follow());
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-play], [data-pick]");
  if (button === null) return;
  if (button.dataset.pick !== undefined) {
    trigger("select", { row: Number(button.dataset.pick) });
  } else if (!player.paused && player.dataset.sound === button.dataset.play) {
    player.pause();
  } else {
    player.dataset.sound = button.dataset.play;
    player.src = button.dataset.play;
    player.play().catch(mark);
  }
});
// The answer may be out of sight: below what was chosen on a narrow screen, or above it.
let shown = element.querySelector("[data-show]")?.dataset.show;
watch("value", () => {
  mark();
  const answer = element.querySelector("[data-show]");
  if (answer?.dataset.show && answer.dataset.show !== shown) {
    const said = [...answer.querySelectorAll("h2, .name, dl")].map((part) => part.textContent);
    document.querySelector("#status").textContent = said.join(" ");
    const top = answer.getBoundingClientRect().top;
    if (top < 0 || top > 0.7 * innerHeight) {
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
      answer.scrollIntoView({ behavior: still ? "instant" : "smooth", block: "start" });
    }
  }
  shown = answer?.dataset.show;
});
