'use strict';
const find = (id) => document.getElementById(id);
const content = JSON.parse(find('data').textContent);
// kinds: [name, colour, what it means] of mistakes. sorts: names of the numbers in picture.order, the largest first.
const { datasets, pictures, kinds = [], sorts = [] } = content;
const colourOfKind = new Map(kinds.map(([name, colour]) => [name, colour]));
const main = document.querySelector('main');
find('report').hidden = !document.querySelector('pre').textContent.trim();
if (content.metrics) {
  find('report').open = false;
  find('report').firstChild.textContent = 'Metrics of the test';
}

function make(kind, parent, properties = {}) {
  const element = parent.appendChild(document.createElement(kind));
  return Object.assign(element, properties);
}

function draw(kind, parent, attributes) {
  const element = parent.appendChild(document.createElementNS('http://www.w3.org/2000/svg', kind));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const className = (dataset, label) => datasets[dataset].classes[label] ?? `label ${label}`;
const nameOf = (picture, label) => className(picture.d, label);

// Black on bright colours, white on dark ones.
const onTop = (colour) => {
  const [red, green, blue] = colour.match(/\d+/g)?.map(Number) ?? [255, 255, 255];
  return 0.3 * red + 0.59 * green + 0.11 * blue > 110 ? '#000' : '#fff';
};

// An object: label c, box b, outline p; i if it is ignored, score s, kind of mistake k, label g of the annotation that
// it was taken for; t if it is an annotation beside predictions.
function labelOf(object, name, picture) {
  const score = object.s === undefined ? '' : ` ${object.s.toFixed(2)}`;
  if (object.i) return `${name} (ignored)`;
  return object.k === 'confused' ? `${name}${score}, is ${nameOf(picture, object.g)}` : `${name}${score}`;
}

function drawObjects(view, picture) {
  const svg = draw('svg', view, { viewBox: `0 0 ${picture.w} ${picture.h}`, preserveAspectRatio: 'none' });
  const area = ({ b }) => b ? (b[2] - b[0]) * (b[3] - b[1]) : 0;
  for (const object of [...picture.objects].sort((one, other) => area(other) - area(one))) {
    const name = nameOf(picture, object.c);
    const parts = object.parts = [];
    if (object.p) parts.push(draw('path', svg, { d: object.p }));
    if (object.b) {
      const [x1, y1, x2, y2] = object.b;
      const [width, height] = [Math.max(0, x2 - x1), Math.max(0, y2 - y1)];
      parts.push(draw('rect', svg, { x: x1, y: y1, width, height }));
      if (!object.t || object.k === 'missed') {
        const text = make('span', view, { className: 'name' });
        if (object.k && object.k !== 'correct') make('i', text, { textContent: `${object.k}: ` });
        text.append(labelOf(object, name, picture));
        const right = x1 > 0.6 * picture.w;
        text.style[right ? 'right' : 'left'] = `${100 * Math.max(0, right ? 1 - x2 / picture.w : x1 / picture.w)}%`;
        text.style.top = `clamp(0px, ${100 * y1 / picture.h}%, calc(100% - 1.35em))`;
        parts.push(text);
      }
    }
    const colour = colourOfKind.get(object.k) ?? datasets[picture.d].colours[object.c] ?? 'rgb(255,255,255)';
    for (const part of parts) {
      part.style.setProperty('--c', colour);
      part.style.setProperty('--on', object.i ? '#000' : onTop(colour));
      if (object.i) part.classList.add('ignored');
      if (object.k) part.classList.add(object.k === 'correct' ? 'correct' : 'mistake');
      if (object.t) part.classList.add('annotation');
      if (object.t && !object.k) part.classList.add('spare');
    }
  }
}

function chip(parent, text, colour) {
  make('span', parent, { className: 'chip', textContent: text }).style.setProperty('--c', colour);
}

const percent = (share) => share < 0.001 ? '< 0.1 %' : `${(100 * share).toFixed(1)} %`;

function caption(figure, picture) {
  const text = make('figcaption', figure);
  make('b', text, { textContent: picture.name, title: picture.path });
  const found = (picture.objects ?? []).filter(({ t, k }) => !t || k === 'missed');
  make('div', text, { className: 'faint', textContent: [
    datasets[picture.d].name,
    picture.w && `${picture.w} × ${picture.h}`,
    picture.objects && !picture.maps && !kinds.length && `${found.length} object${found.length === 1 ? '' : 's'}`,
    ...(picture.words ?? []),
  ].filter(Boolean).join(' · ') });
  const list = make('div', text);
  const counts = new Map();
  for (const { c, i, k } of found) if (!i) counts.set(k ?? c, (counts.get(k ?? c) ?? 0) + 1);
  for (const [key, number] of [...counts].sort((one, other) => other[1] - one[1])) {
    const colour = colourOfKind.get(key) ?? datasets[picture.d].colours[key] ?? '#fff';
    chip(list, `${colourOfKind.has(key) ? key : nameOf(picture, key)} ${number}`, colour);
  }
  for (const [name, share, colour] of picture.shares ?? []) chip(list, `${name} ${typeof share === 'string' ? share : percent(share)}`, colour);
  for (const fault of picture.faults) make('div', text, { className: 'fault', textContent: fault });
}

const inClasses = new Map();
const mapNames = new Set();
for (const picture of pictures) {
  picture.names = new Set([
    ...(picture.objects ?? []).flatMap(({ c, g }) => g === undefined ? [c] : [c, g]).map((label) => nameOf(picture, label)),
    ...(picture.shares ?? []).map(([name]) => name)]);
  for (const name of picture.names) inClasses.set(name, (inClasses.get(name) ?? 0) + 1);
  const figure = picture.figure = make('figure', main);
  if (picture.src) {
    const view = make('div', figure, { className: 'view' });
    view.style.setProperty('--ratio', picture.w / picture.h);
    make('img', view, { src: picture.src, alt: picture.name, width: picture.w, height: picture.h });
    for (const [name, src] of Object.entries(picture.maps ?? {})) {
      mapNames.add(name);
      make('img', view, { src, className: 'map', alt: '' }).dataset.map = name;
    }
    if (picture.objects?.length && !picture.drawn) drawObjects(view, picture);
    view.addEventListener('click', () => { figure.classList.toggle('wide'); figure.scrollIntoView({ block: 'nearest' }); });
  } else {
    make('div', figure, { className: 'broken', textContent: 'cannot be drawn' });
  }
  caption(figure, picture);
}

// Above the pictures: tiles [number, words, kind], and tables of text; `matrix` has numbers with background.
function summary({ tiles = [], rule = '', tables = [], matrix }) {
  find('summary').hidden = !tiles.length;
  find('rule').textContent = rule;
  for (const [value, words, kind] of tiles) {
    const tile = make(kind ? 'button' : 'div', find('tiles'), { className: 'tile' });
    make('b', tile, { textContent: value });
    make('span', tile, { textContent: words });
    if (!kind) continue;
    tile.style.setProperty('--c', colourOfKind.get(kind));
    tile.title = kinds.find(([name]) => name === kind)[2];
    tile.dataset.kind = kind;
    tile.addEventListener('click', () => { find('kind').value = find('kind').value === kind ? '' : kind; update(); });
  }
  for (const { title, head, rows, words } of tables) {
    const table = framed(title, head, words);
    for (const [index, cells] of rows.entries()) {
      const row = make('tr', table, { title: 'show pictures with this class' });
      cells.forEach((cell, column) => make(column ? 'td' : 'th', row, { textContent: cell }));
      row.dataset.order = index;
      row.dataset.class = cells[0];
      row.addEventListener('click', () => { find('class').value = cells[0]; update(); main.scrollIntoView(); });
    }
    table.parentElement.querySelectorAll('thead th').forEach((cell, column) => {
      let up = false;
      cell.addEventListener('click', () => {
        up = !up;
        const value = (row) => row.children[column].textContent;
        const number = (row) => Number.parseFloat(value(row).replace('–', '-1'));
        const compare = (one, other) => column ? number(one) - number(other) : value(one).localeCompare(value(other));
        table.append(...[...table.children].sort((one, other) => (up ? 1 : -1) * compare(one, other)));
      });
    });
  }
  if (matrix) {
    const table = framed(matrix.title, ['annotated ↓, predicted →', ...matrix.columns], matrix.words);
    table.parentElement.className = 'matrix';
    matrix.rows.forEach(([name, shares, texts], row) => {
      const line = make('tr', table);
      make('th', line, { textContent: name, title: name });
      texts.forEach((text, column) => {
        const cell = make('td', line, { textContent: text, title: `${name} as ${matrix.columns[column]}` });
        cell.style.setProperty('--share', shares[column]);
        cell.classList.toggle('same', row === column);
      });
    });
  }
}

function framed(title, head, words = '') {
  const details = make('details', find('tables'), { open: true });
  make('summary', details, { textContent: title });
  const scroll = make('div', details, { className: 'scroll' });
  const table = make('table', scroll);
  const row = make('tr', make('thead', table));
  for (const text of head) make('th', row, { textContent: text, title: text });
  if (words) make('p', scroll, { className: 'faint', textContent: words });
  return make('tbody', table);
}

function options(id, values) {
  for (const [value, text] of values) make('option', find(id), { value, textContent: text });
}

datasets.forEach(({ name, number }, index) => {
  const shown = pictures.filter(({ d }) => d === index).length;
  options('dataset', [[index, `${name} (${shown} of ${number})`]]);
});
const all = [...new Set(datasets.flatMap(({ classes }) => classes))];
options('class', [...all, ...[...inClasses.keys()].filter((name) => !all.includes(name)).sort()].map(
  (name) => [name, `${name} (${inClasses.get(name) ?? 0})`]));
options('sort', sorts.map((name) => [name, name]));
options('kind', kinds.filter(([name]) => name !== 'correct').map(([name]) => [name, name]));
options('map', [...mapNames].map((name) => [name, name]));
const objects = pictures.flatMap(({ objects = [] }) => objects);
const scores = objects.flatMap(({ s }) => s ?? []);
const least = content.slider && scores.length ? Math.floor(100 * Math.min(...scores)) / 100 : 0;
Object.assign(find('score'), { min: least, value: least });
const label = (id) => find(id).closest('label');
label('sort').hidden = !sorts.length;
label('kind').hidden = !kinds.length;
label('dataset').hidden = datasets.length < 2;
label('score').hidden = !content.slider || !scores.length;
label('map').hidden = mapNames.size < 2;
label('truth').hidden = !objects.some(({ t }) => t);
for (const id of ['boxes', 'names']) label(id).hidden = !objects.some(({ parts }) => parts);
label('masks').hidden = !mapNames.size && !objects.some(({ p }) => p);
label('strength').hidden = label('masks').hidden;
find('note').hidden = !content.note;
find('note').textContent = content.note ?? '';
summary(content);

// What is chosen stands in the address, so that it can be passed on.
const chosen = ['sort', 'kind', 'dataset', 'class', 'score', 'search', 'map'];
for (const [id, value] of new URLSearchParams(location.hash.slice(1))) if (chosen.includes(id)) find(id).value = value;
const standard = Object.fromEntries(chosen.map((id) => [id, find(id).querySelector?.('option')?.value ?? '']));
standard.score = String(least);

function update() {
  const [sort, kind, dataset, name, score, part, map] = chosen.map((id) => find(id).value);
  const from = Number(score);
  const fitsObject = (picture, { c, g, k, s, t }) => (s === undefined || s >= from) && (kind === '' || k === kind)
    && (name === '' || nameOf(picture, c) === name || (g !== undefined && nameOf(picture, g) === name));
  const narrowed = kind !== '' || (content.slider && from > least);
  let shown = 0;
  for (const picture of pictures) {
    const some = (picture.objects ?? []).some((object) => fitsObject(picture, object));
    picture.figure.hidden = !((dataset === '' || picture.d === Number(dataset)) && (name === '' || picture.names.has(name))
      && (!(narrowed || name !== '') || some || (picture.shares && !narrowed))
      && picture.path.toLowerCase().includes(part.trim().toLowerCase()));
    shown += !picture.figure.hidden;
    for (const object of picture.objects ?? []) {
      const tooLow = object.s !== undefined && object.s < from;
      const other = !tooLow && !fitsObject(picture, object);
      for (const element of object.parts ?? []) {
        element.classList.toggle('other', other);
        element.style.display = tooLow ? 'none' : '';
      }
    }
  }
  if (sort) {
    const rank = ({ order }) => (kind && order[kind]) || 0;
    main.append(...[...pictures].sort((one, other) => rank(other) - rank(one) || other.order[sort] - one.order[sort])
      .map(({ figure }) => figure));
  }
  for (const element of main.querySelectorAll('.map')) element.hidden = element.dataset.map !== map;
  for (const id of ['boxes', 'masks', 'names']) main.classList.toggle(`no-${id}`, !find(id).checked);
  for (const tile of document.querySelectorAll('[data-kind]')) tile.ariaPressed = String(tile.dataset.kind === kind);
  main.dataset.map = find('masks').checked ? map : '';
  main.classList.toggle('all-truth', find('truth').checked);
  main.style.setProperty('--strength', find('strength').value);
  find('score').nextElementSibling.textContent = from.toFixed(2);
  const faulty = pictures.filter(({ faults }) => faults.length).length;
  find('state').textContent = `${shown} of ${pictures.length} pictures` + (faulty ? `, ${faulty} with a fault` : '');
  const said = chosen.map((id) => [id, find(id).value]).filter(([id, value]) => value !== standard[id]);
  history.replaceState(null, '', `#${new URLSearchParams(said)}`);
}
document.querySelector('form').addEventListener('input', update);
document.querySelector('form').addEventListener('submit', (event) => event.preventDefault());
update();
