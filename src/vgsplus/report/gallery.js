for (const card of document.querySelectorAll(".card[data-step]")) {
  const sound = card.querySelector("audio");
  const moments = Number(card.style.getPropertyValue("--moments"));
  const show = () => {
    // The first map is that of the complete caption.
    const whole = sound.ended || sound.currentTime === 0;
    const moment = whole ? 0 : 1 + Math.min(Math.floor(sound.currentTime / card.dataset.step), moments - 1);
    card.style.setProperty("--moment", moment);
    if (!sound.paused) requestAnimationFrame(show);
  };
  for (const event of ["play", "seeked", "ended"]) sound?.addEventListener(event, show);
}
