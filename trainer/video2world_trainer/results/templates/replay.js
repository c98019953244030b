"use strict";
// Without this script, the videos have their own controls and the plots no cursor.
for (const replay of document.querySelectorAll(".replay")) {
  const fps = Number(replay.dataset.fps);
  const last = Number(replay.dataset.frames) - 1;
  const videos = [...replay.querySelectorAll("video")];
  const motions = [...replay.querySelectorAll(".motion")].map((figure) => ({
    rows: JSON.parse(figure.dataset.rows),
    plot: figure.querySelector(".actions"),
    cursor: figure.querySelector(".cursor"),
    values: [...figure.querySelectorAll(".values b")],
  }));
  const transport = replay.querySelector(".transport");
  const [button, slider, output] = transport.children;
  const lastOf = (video) => Number(video.dataset.frames) - 1;
  // the others follow the longest video that can be played
  const leader = () => videos.filter((video) => !video.error)
    .reduce((a, b) => (a && lastOf(a) >= lastOf(b) ? a : b), null);
  let playing = false;
  let wanted = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  let shown = -1;

  const show = (frame) => {
    if (frame === shown) return;
    shown = frame;
    const text = `frame ${frame} of ${last}, ${(frame / fps).toFixed(2)} s`;
    slider.value = frame;
    slider.setAttribute("aria-valuetext", text);
    output.textContent = text;
    for (const { rows, cursor, values } of motions) {
      const x = Math.min(frame, rows.length);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      const row = rows[Math.min(frame, rows.length - 1)];
      values.forEach((value, number) => { value.textContent = row[number]; });
    }
  };
  const place = (video, frame) => {
    video.currentTime = (Math.min(frame, lastOf(video)) + 0.5) / fps; // the middle of the frame
  };
  const seek = (frame) => {
    videos.forEach((video) => place(video, frame));
    show(frame);
  };
  const pause = () => {
    playing = false;
    button.textContent = "Play";
    videos.forEach((video) => video.pause());
    seek(Math.max(shown, 0));
  };
  const follow = () => {
    const first = leader();
    if (!playing || !first) return;
    if (first.ended) {
      seek(0);
      videos.forEach((video) => video.play().catch(() => {}));
    } else {
      show(Math.min(last, Math.floor(first.currentTime * fps + 0.01)));
      for (const video of videos) {
        const behind = Math.abs(video.currentTime - first.currentTime) * fps > 2;
        if (video !== first && !video.seeking && behind && shown < lastOf(video)) {
          video.currentTime = first.currentTime;
        }
      }
    }
    requestAnimationFrame(follow);
  };
  const play = () => {
    const first = leader();
    if (!first) return;
    if (shown >= last) seek(0);
    playing = true;
    button.textContent = "Pause";
    videos.forEach((video) => { if (shown < lastOf(video)) video.play().catch(() => {}); });
    requestAnimationFrame(follow);
  };
  const toggle = () => {
    wanted = !playing;
    if (playing) pause(); else play();
  };
  const scrub = (frame) => {
    wanted = false;
    if (playing) pause();
    seek(Math.max(0, Math.min(last, frame)));
  };

  button.addEventListener("click", toggle);
  slider.addEventListener("input", () => scrub(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    if (event.key !== " ") return;
    event.preventDefault();
    toggle();
  });
  for (const { rows, plot } of motions) {
    const drag = (event) => {
      const box = plot.getBoundingClientRect();
      scrub(Math.round((event.clientX - box.left) / box.width * rows.length));
    };
    plot.addEventListener("pointerdown", (event) => {
      plot.setPointerCapture(event.pointerId);
      drag(event);
    });
    plot.addEventListener("pointermove", (event) => {
      if (plot.hasPointerCapture(event.pointerId)) drag(event);
    });
  }
  for (const video of videos) video.controls = false;
  transport.hidden = false;
  show(0);
  // plays while it can be seen, until someone pauses it
  new IntersectionObserver((entries) => {
    const visible = entries[entries.length - 1].isIntersecting;
    if (visible && wanted && !playing) play();
    if (!visible && playing) pause();
  }, { threshold: 0.2 }).observe(replay);
}
