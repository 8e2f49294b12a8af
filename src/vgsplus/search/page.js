// Of each part of the page: `element`, `trigger` and `watch` are Gradio's. One sound plays at a time.
const player = (window.vgsplusPlayer ??= new Audio());
const mark = () => {
  for (const button of document.querySelectorAll("[data-play]")) {
    const playing = !player.paused && player.dataset.sound === button.dataset.play;
    button.setAttribute("aria-pressed", String(playing));
    button.setAttribute("aria-label", playing ? "Stop" : "Play");
  }
};
for (const event of ["play", "pause", "ended"]) player["on" + event] = mark;
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
// On a narrow screen the answer is below what was chosen.
let shown = element.querySelector("[data-show]")?.dataset.show;
watch("value", () => {
  mark();
  const answer = element.querySelector("[data-show]");
  if (answer?.dataset.show && answer.dataset.show !== shown && answer.getBoundingClientRect().top > 0.7 * innerHeight) {
    answer.scrollIntoView({ behavior: "smooth", block: "start" });
  }
  shown = answer?.dataset.show;
});
