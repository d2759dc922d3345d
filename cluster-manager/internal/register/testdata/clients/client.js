// Registers any number of nodes with an unmodified socket.io-client and prints one line of JSON for each.
// Argument: {"lib","url","transports","count","text","info","mode","stay"}; "lib" is client2 or client4.
'use strict';
const crypto = require('crypto');
const o = JSON.parse(process.argv[2]);
const io = require(o.lib);

const { publicKey, privateKey } = crypto.generateKeyPairSync('ed25519');
const key = Buffer.from(publicKey.export({ format: 'jwk' }).x, 'base64url').toString('base64');

let left = o.count;
for (let i = 0; i < o.count; i++) node(i);

function node(i) {
  const seen = { i, order: [] };
  const socket = io(o.url + (o.namespace || '/init'), {
    transports: o.transports, forceNew: true, reconnection: false, timeout: 30000,
  });
  const timer = setTimeout(() => done('no answer'), 45000);
  let over = false;
  function done(error) {
    if (over) return;
    over = true;
    clearTimeout(timer);
    if (error) seen.error = String(error);
    const engine = socket.io.engine;
    seen.transport = engine && engine.transport ? engine.transport.name : '';
    process.stdout.write(JSON.stringify(seen) + '\n');
    socket.close();
    if (--left === 0) setTimeout(() => process.exit(0), 50); // lets the last close packet leave
  }
  function answer(event, payload) {
    seen.event = event;
    seen.form = typeof payload;
    seen.answer = typeof payload === 'string' ? JSON.parse(payload) : payload;
    if (!o.stay && event === 'sc2') done();
  }
  socket.on('connect', () => {
    seen.order.push('connect');
    if (o.upgraded) socket.io.engine.once('upgrade', () => seen.order.push('upgrade'));
  });
  socket.on('connect_error', (e) => done(e && e.message ? e.message : e));
  socket.on('error', (e) => done(e && e.message ? e.message : e));
  socket.on('disconnect', (reason) => {
    seen.order.push('disconnect');
    seen.reason = reason;
    done();
  });
  socket.on('sc1', (hello) => {
    seen.order.push('sc1');
    seen.hello = hello;
    if (o.silent) return;
    const proof = crypto.sign(null, Buffer.from('skerry node of ' + hello.cluster + '\n' + hello.nonce), privateKey);
    const info = o.info || {
      name: 'node-' + i, key, proof: proof.toString('base64'), protocol: 1, arch: 'amd64',
      cpu: { model: 'Prozeßor™ 𝛼', cores: 4 }, memory_mb: 1024, technologies: [{ name: 'docker' }],
    };
    const emit = () => socket.emit('cs1', o.text ? JSON.stringify(info) : info, () => seen.order.push('ack'));
    if (o.upgraded && socket.io.engine.transport.name !== 'websocket') socket.io.engine.once('upgrade', emit);
    else emit();
  });
  socket.on('sc2', (payload) => { seen.order.push('sc2'); answer('sc2', payload); });
  socket.on('refused', (payload) => { seen.order.push('refused'); answer('refused', payload); });
}
