"""Content of the synthetic care domain: needs, their courses and their items.

Names of diseases and medicines are facts; the sentences, the odds and the ages are made for this
project and describe nobody. The format is explained in `common.synthetic_model`.
"""

from common.synthetic_model import Content

CARE = Content(
    domain="care",
    kinds={"d": "Diagnosis", "m": "Medicine", "p": "Procedure"},
    relations={"d": "complication_of", "m": "treats", "p": "performed_for"},
    group_relation="in_chapter",
    lead_relation="raises_risk_of",
    anchor_kind="d",
    traits=("frailty", "lifestyle", "female", "activity", "stress"),
    ages=(57.0, 18.0, 18.0, 92.0),
    interactions=(5, 25),
    memory_years=15.0,
    table="""
[everyday] General care
d0 Common cold | Runny nose and sore throat from a virus, gone within a week.
m0 Paracetamol | Simple tablet against pain and fever.
p0 Routine health check | Yearly talk and examination with the family doctor.
p0 Full blood count | Laboratory count of red cells, white cells and platelets.
p0 Influenza vaccination | Yearly flu jab before winter.
p0 Blood pressure measurement | Cuff reading in the practice.
p0 Tetanus and diphtheria booster | Vaccination repeated every ten years.
p0 Urine test strip | Quick test for sugar, protein and blood in urine.
p0 Covid-19 vaccination | Vaccination against the coronavirus.
p0 Skin cancer screening | The whole skin is looked over for suspicious moles.
d0 Vitamin D deficiency | Too little vitamin D, frequent in winter and in old age.
m0 Vitamin D drops | Vitamin D supplement for bones and muscles.
d0 Viral gastroenteritis | Stomach bug with vomiting and diarrhoea for a few days.
m0 Ibuprofen | Tablet against pain, fever and inflammation.
[obesity] Endocrine and metabolic disease
odds -0.9 age 42 14 traits lifestyle .9 stress .2 leads t2d 1.3 htn .8 joints .7 sleep .5
d0 Obesity | Body weight far above what is healthy for the height.
p0 Dietitian counselling | Sessions on food, portions and weight.
p1 Exercise programme on prescription | Supervised training to lose weight and gain strength.
m2 Semaglutide | Weekly injection that curbs appetite and lowers sugar.
m2 Orlistat | Capsule that blocks the uptake of fat from food.
p3 Gastric bypass surgery | Operation on the stomach for severe obesity.
d1 Fatty liver disease | Fat stored in the liver, found with overweight and diabetes.
p1 Liver ultrasound | Sound picture of the liver.
[smoking] Lungs and airways
odds -1.0 age 35 14 traits lifestyle .8 stress .4 leads copd 1.7 cad .7 artery 1.2 lungca 1.6
d0 Tobacco dependence | Long-standing need to smoke cigarettes.
p0 Stop-smoking counselling | Talks and a plan for quitting tobacco.
m1 Nicotine patch | Plaster that eases withdrawal from smoking.
m1 Varenicline | Tablet that takes the reward out of smoking.
m2 Bupropion | Tablet against depression, also used for quitting tobacco.
[t2d] Endocrine and metabolic disease
odds -1.4 age 57 12 traits lifestyle .7 frailty .3 leads htn .9 ckd 1.2 foot 1.9 cad .6 eyes .5
d0 Type 2 diabetes | High blood sugar because the body no longer answers to insulin.
m0 Metformin | First tablet for type 2 diabetes; lowers sugar made by the liver.
p0 HbA1c test | Blood test of the average sugar over three months.
p0 Diabetes education course | Group lessons on sugar, food and foot care.
m1 Empagliflozin | Tablet that passes sugar into urine and protects heart and kidneys.
m1 Sitagliptin | Tablet that raises insulin after meals.
m1 Glimepiride | Tablet that makes the pancreas release insulin.
m2 =Semaglutide
m2 Insulin glargine | Long-acting insulin, one injection a day.
m3 Insulin lispro | Fast insulin with meals.
p3 Continuous glucose sensor | Sensor on the arm that reads sugar day and night.
p1 Diabetic eye screening | Yearly photograph of the retina.
[htn] Heart and circulation
odds -0.5 age 55 13 traits lifestyle .5 stress .3 leads cad .6 stroke .7 hf .6 ckd .7 afib .5
d0 High blood pressure | Pressure in the arteries that stays above the healthy range.
m0 Amlodipine | Calcium channel blocker that widens blood vessels.
m0 Ramipril | ACE inhibitor that lowers blood pressure and protects heart and kidneys.
p0 Ambulatory blood pressure monitoring | A cuff that measures for a day and a night.
m1 Hydrochlorothiazide | Water tablet for high blood pressure.
m1 Lisinopril | ACE inhibitor against high blood pressure.
m1 Losartan | Angiotensin blocker for people who cough on ACE inhibitors.
m2 Valsartan | Angiotensin blocker for blood pressure and the weak heart.
d2 Hypertensive heart disease | Heart muscle thickened by years of high pressure.
p1 Electrocardiogram | Recording of the electrical activity of the heart.
[lipids] Heart and circulation
odds -0.8 age 54 12 traits lifestyle .4 leads cad .9 artery .6 stroke .3
d0 High cholesterol | Too much LDL cholesterol in the blood.
p0 Lipid profile | Blood test of cholesterol and triglycerides.
m0 Atorvastatin | Statin that lowers cholesterol.
m0 Simvastatin | Older statin that lowers cholesterol.
m1 Rosuvastatin | Strong statin for stubborn cholesterol.
m2 Ezetimibe | Tablet that blocks cholesterol uptake in the gut.
m3 Evolocumab | Injection for very high inherited cholesterol.
[cad] Heart and circulation
odds -2.0 age 64 11 traits lifestyle .4 frailty .3 female -.3 leads hf 1.2 afib .5
d0 Coronary artery disease | Narrowed vessels that feed the heart muscle.
d0 Angina pectoris | Chest pain on effort from narrowed heart vessels.
m0 Acetylsalicylic acid | Low-dose aspirin that keeps platelets from clumping.
m0 Bisoprolol | Beta blocker that slows and relieves the heart.
m0 =Atorvastatin
p0 Exercise stress test | Heart recording on a bicycle.
m1 Glyceryl trinitrate spray | Spray under the tongue against an attack of angina.
p1 Coronary angiography | X-ray film of the heart's vessels with contrast dye.
p2 Coronary stent | Wire mesh that holds a heart vessel open.
d2 Myocardial infarction | Heart attack: part of the heart muscle loses its blood supply.
m2 Clopidogrel | Keeps platelets apart after a stent or a stroke.
p3 Coronary bypass surgery | New routes around blocked heart vessels.
p3 Cardiac rehabilitation | Training and teaching after a heart attack or operation.
[afib] Heart and circulation
odds -2.3 age 69 10 traits frailty .4 leads stroke 1.3 hf .7
d0 Atrial fibrillation | Irregular, often fast heartbeat that can form clots.
m0 Apixaban | Blood thinner that prevents stroke in atrial fibrillation.
m0 =Bisoprolol
p0 Holter monitoring | Heart rhythm recorded over one day.
m1 Rivaroxaban | Blood thinner, one tablet a day.
m1 Warfarin | Older blood thinner that needs regular clotting tests.
p2 Cardioversion | Electric pulse that resets the heartbeat.
m2 Amiodarone | Strong medicine for the heart rhythm.
p3 Pacemaker implantation | Small device that keeps the heartbeat going.
[hf] Heart and circulation
odds -2.9 age 72 9 traits frailty .6 leads ckd .6 frail .7
d0 Heart failure | The heart pumps too weakly; breathlessness and swollen legs.
p0 Echocardiography | Ultrasound of the beating heart.
p0 BNP blood test | Marker that rises when the heart is strained.
m0 Furosemide | Strong water tablet against swollen legs and fluid in the lungs.
m1 =Bisoprolol
m1 Spironolactone | Water tablet that spares potassium and protects the heart.
m2 Sacubitril and valsartan | Combination for the weak heart.
m2 =Empagliflozin
m3 Digoxin | Strengthens the heartbeat.
d3 Pulmonary oedema | Fluid in the lungs from a failing heart.
[ckd] Kidneys and urinary tract
odds -2.6 age 67 11 traits frailty .4 leads anaemia 1.2 gout .8
d0 Chronic kidney disease | Kidneys that lose their filtering power over years.
p0 Creatinine and eGFR test | Blood test of kidney function.
p0 Urine albumin test | Finds early kidney damage in diabetes and high pressure.
m1 Dapagliflozin | Tablet that slows the loss of kidney function.
m1 =Ramipril
d1 High potassium | Potassium in the blood above the safe range.
m2 Sodium bicarbonate | Corrects acid blood in kidney disease.
m2 Epoetin | Injection that replaces the kidney's blood-forming hormone.
p3 Haemodialysis | Machine that washes the blood three times a week.
p3 Kidney transplantation | A donor kidney takes over.
[stroke] Brain and nerves
odds -2.7 age 71 10 traits frailty .4 leads dementia .8 frail .9
d0 Ischaemic stroke | A clot cuts off part of the brain: weakness, speech loss.
d0 Transient ischaemic attack | Warning stroke that passes within a day.
p0 Brain CT scan | X-ray slices of the brain.
p0 Carotid ultrasound | Sound picture of the neck arteries.
m0 =Clopidogrel
m1 =Atorvastatin
p1 Stroke rehabilitation | Training of walking, speech and hands.
p2 Speech therapy | Exercises for speaking and swallowing.
[artery] Heart and circulation
odds -2.9 age 68 9 traits lifestyle .5 leads foot .8
d0 Peripheral artery disease | Narrowed leg arteries; pain on walking.
p0 Ankle-brachial index | Pressure at the ankle against the arm.
m0 =Clopidogrel
m1 Cilostazol | Tablet that lengthens the walking distance.
p2 Leg artery balloon | A balloon widens a leg vessel.
[foot] Endocrine and metabolic disease
odds -4.2 age 66 9 traits frailty .5
d0 Diabetic neuropathy | Numb or burning feet from years of high sugar.
m0 Pregabalin | Capsule against nerve pain.
p0 Foot examination with monofilament | Tests the feeling in the feet.
d1 Diabetic foot ulcer | Wound on the foot that heals badly.
p1 Wound dressing | Cleaning and covering of a chronic wound.
d1 Diabetic retinopathy | Damaged vessels in the retina from diabetes.
p2 Retinal laser treatment | Laser against leaking vessels in the eye.
m2 Aflibercept | Injection into the eye against swelling of the retina.
p3 Toe amputation | Removal of a dead toe.
[copd] Lungs and airways
odds -2.9 age 64 10 traits lifestyle .3 frailty .4 leads pneumonia 1.1 lungca .6
d0 Chronic obstructive pulmonary disease | Airways narrowed for good, mostly by smoking.
p0 Spirometry | Blowing test of the lungs.
m0 Tiotropium inhaler | Opens the airways for a day.
m0 Salbutamol inhaler | Fast relief when breath is short.
m1 Formoterol and budesonide inhaler | Opens airways and calms inflammation.
d1 COPD exacerbation | Sudden worsening with cough and breathlessness.
m1 Prednisolone | Cortisone tablet against strong inflammation.
p2 Pulmonary rehabilitation | Breathing and endurance training.
p3 Home oxygen therapy | Oxygen through a nose tube at home.
[asthma] Lungs and airways
odds -1.9 age 28 14 traits female .2 stress .2 leads allergy .9
d0 Asthma | Attacks of wheezing from oversensitive airways.
m0 =Salbutamol inhaler
m0 Beclometasone inhaler | Daily cortisone spray that prevents attacks.
p0 =Spirometry
m1 =Formoterol and budesonide inhaler
m2 Montelukast | Evening tablet against asthma and hay fever.
m3 Omalizumab | Antibody injection for severe allergic asthma.
[allergy] Skin and allergy
odds -1.5 age 26 14 traits stress .2
d0 Hay fever | Itchy eyes and sneezing in the pollen season.
m0 Cetirizine | Tablet against allergy.
m0 Mometasone nasal spray | Cortisone spray for a blocked nose.
p1 Allergy skin prick test | Drops on the arm find the trigger.
p2 Allergen immunotherapy | Injections that train the body to bear pollen.
[pneumonia] Lungs and airways
odds -1.9 age 63 18 traits frailty .6
d0 Pneumonia | Infection deep in the lungs with fever and cough.
p0 Chest X-ray | Picture of heart and lungs.
m0 Amoxicillin | Penicillin for infections of lungs, ears and throat.
m0 Doxycycline | Antibiotic for the lungs and for travellers.
p0 C-reactive protein test | Blood marker of inflammation.
m1 Ceftriaxone | Antibiotic drip in hospital.
p2 Pneumococcal vaccination | Vaccination against a frequent cause of pneumonia.
[lungca] Cancer
odds -4.6 age 67 9 traits lifestyle .3 leads frail .8
d0 Lung cancer | Malignant tumour of the lung.
p0 Chest CT scan | X-ray slices of the lungs.
p0 Bronchoscopy | Camera through the windpipe.
p1 Lung resection | Removal of a part of the lung.
m1 Cisplatin | Chemotherapy drip.
m2 Pembrolizumab | Antibody that wakes the immune system against cancer.
[anxiety] Mind and sleep
odds -1.5 age 34 13 traits stress .9 female .3 leads depression 1.3 sleep .7
d0 Anxiety disorder | Worry and panic out of proportion.
p0 Cognitive behavioural therapy | Talking therapy that changes thoughts and habits.
m0 Escitalopram | Antidepressant also used for anxiety.
m1 Lorazepam | Calming tablet for short use.
[depression] Mind and sleep
odds -1.5 age 40 15 traits stress .9 female .3 leads dementia .3
d0 Depression | Low mood, no drive and poor sleep for weeks.
m0 Sertraline | Antidepressant tablet.
p0 =Cognitive behavioural therapy
m0 =Escitalopram
m1 Mirtazapine | Antidepressant for the night.
m1 Venlafaxine | Antidepressant for stubborn depression.
d1 Burnout | Exhaustion after long strain at work.
p2 Psychiatric day clinic | Day treatment with groups and therapy.
[sleep] Mind and sleep
odds -2.1 age 50 12 traits stress .5 female -.2
d0 Sleep apnoea | Breathing that stops again and again at night.
p0 Sleep study | A night with sensors.
p1 CPAP machine | Mask that keeps the airway open during sleep.
d0 Insomnia | Trouble falling or staying asleep.
m1 Zopiclone | Sleeping tablet for short use.
[dementia] Brain and nerves
odds -3.2 age 79 7 traits frailty .5 leads frail 1.5
d0 Alzheimer's dementia | Slow loss of memory and orientation.
p0 Memory test | Short test of memory, clock and words.
m0 Donepezil | Tablet that slows memory loss.
p0 Brain MRI scan | Magnetic picture of the brain.
m2 Memantine | Tablet for advanced dementia.
[injury] Bones and joints
odds -1.8 age 29 11 traits activity 1.0 female -.2 leads joints .4
d0 Ankle sprain | Overstretched ligaments after a twist.
d0 Torn knee ligament | Cruciate ligament torn in sport.
p0 Ankle bandage and splint | Support for a sprained ankle.
p1 Knee MRI scan | Magnetic picture of the knee.
p2 Knee arthroscopy | Keyhole operation in the knee.
d1 Shoulder dislocation | The arm out of its socket, often from skiing.
p1 Sports medicine check | Fitness test before training again.
[joints] Bones and joints
odds -1.0 age 60 13 traits frailty .3 activity .2 leads back .4
d0 Knee osteoarthritis | Worn cartilage in the knee.
d0 Hip osteoarthritis | Worn cartilage in the hip.
p0 Knee X-ray | Picture of the knee joint.
m0 Diclofenac gel | Gel against joint pain.
p0 Physiotherapy | Exercises for joints, back and muscles.
p1 Cortisone injection into the joint | Calms an inflamed joint.
p2 Knee replacement | Artificial knee joint.
p2 Hip replacement | Artificial hip joint.
p3 Orthopaedic rehabilitation | Walking and strength training after a joint operation.
[bones] Bones and joints
odds -1.9 age 70 9 traits female .9 frailty .4 leads frail .7
d0 Osteoporosis | Thin, brittle bones.
p0 Bone density scan | X-ray measure of bone strength.
m0 Alendronate | Weekly tablet that hardens bones.
m0 =Vitamin D drops
m2 Denosumab | Injection twice a year for brittle bones.
d1 Wrist fracture | Broken wrist after a fall.
d2 Hip fracture | Broken hip after a fall in old age.
p2 Hip fracture surgery | Nail or screw for a broken hip.
d1 Vertebral fracture | A collapsed vertebra.
[back] Bones and joints
odds -0.8 age 44 14 traits stress .3 activity -.3
d0 Low back pain | Aching lower back without a clear cause.
p0 =Physiotherapy
m0 Naproxen | Tablet against pain of joints and back.
p1 Lumbar spine MRI scan | Magnetic picture of the lower back.
d1 Slipped disc | A disc presses on a nerve; pain down the leg.
m2 Tramadol | Opioid tablet for strong pain.
p3 Disc surgery | Removal of the part that presses on the nerve.
[gout] Bones and joints
odds -2.8 age 58 12 traits female -.7 lifestyle .4
d0 Gout | Sudden hot swelling of the big toe from uric acid.
m0 Colchicine | Tablet for an attack of gout.
m1 Allopurinol | Tablet that lowers uric acid.
p0 Uric acid test | Blood test for gout.
[reflux] Stomach and bowel
odds -1.1 age 47 15 traits lifestyle .3 stress .4
d0 Acid reflux | Heartburn from stomach acid.
m0 Omeprazole | Capsule that lowers stomach acid.
m0 Pantoprazole | Tablet that protects the stomach.
p1 Gastroscopy | Camera into the stomach.
d1 Stomach ulcer | Wound in the stomach lining.
p1 Helicobacter breath test | Finds the germ behind ulcers.
[bowel] Cancer
odds -2.4 age 64 10 traits lifestyle .2 leads anaemia .8
p0 Stool blood test | Screening for bowel cancer.
p0 Colonoscopy | Camera into the bowel.
d0 Colon polyp | Growth in the bowel, removed early.
d2 Colorectal cancer | Malignant tumour of the bowel.
p2 Bowel resection | Removal of a part of the bowel.
m3 Fluorouracil | Chemotherapy for bowel cancer.
[family] Pregnancy and birth
odds -2.2 age 30 4 traits female 1.6 leads birth 2.6
d0 Unfulfilled wish for a child | A couple waits for a pregnancy for over a year.
m0 Folic acid | Vitamin taken before and in early pregnancy.
p1 Fertility treatment | Artificial insemination or IVF.
m0 Contraceptive pill | Daily tablet that prevents pregnancy.
p0 Contraceptive coil | Small device in the womb that prevents pregnancy.
[birth] Pregnancy and birth
odds -3.9 age 31 4 traits female 1.6 leads thyroid .3 anaemia .5
d0 Pregnancy | Expecting a child.
p0 Antenatal check | Regular examination of mother and unborn child.
p0 Pregnancy ultrasound | Sound picture of the unborn child.
p0 Glucose tolerance test | Sugar test in pregnancy.
d1 Gestational diabetes | High sugar during pregnancy.
p1 Birth preparation course | Breathing and practice for parents to be.
p2 Vaginal birth | Delivery of a child.
p2 Caesarean section | Delivery by operation.
p3 Newborn examination | First check of the baby.
p3 Infant vaccinations | First vaccinations of the baby.
[thyroid] Endocrine and metabolic disease
odds -1.9 age 46 14 traits female .9
d0 Underactive thyroid | Too little thyroid hormone: tired, cold, heavier.
m0 Levothyroxine | Thyroid hormone tablet.
p0 TSH test | Blood test of the thyroid.
p1 Thyroid ultrasound | Sound picture of the thyroid.
[anaemia] Blood
odds -2.4 age 55 18 traits female .5 frailty .4
d0 Iron deficiency anaemia | Too little iron for red blood cells; tiredness.
m0 Iron tablets | Iron supplement.
p0 Ferritin test | Blood test of iron stores.
p2 Iron infusion | Iron by drip.
p3 Blood transfusion | Donor red cells by drip.
[breast] Cancer
odds -2.6 age 58 10 traits female 1.8
p0 Mammography | X-ray screening of the breast.
d1 Breast cancer | Malignant tumour of the breast.
p1 Breast biopsy | Tissue sample of a lump.
p2 Breast-conserving surgery | Removal of the tumour alone.
p2 Radiotherapy | High-energy rays against cancer cells.
m3 Tamoxifen | Tablet that blocks oestrogen in breast cancer.
[prostate] Kidneys and urinary tract
odds -2.1 age 66 9 traits female -2.2
d0 Enlarged prostate | Weak stream and getting up at night.
m0 Tamsulosin | Capsule that eases passing water.
p0 PSA test | Blood test of the prostate.
d2 Prostate cancer | Malignant tumour of the prostate.
p2 Prostate surgery | Removal of prostate tissue.
[eyes] Eyes and ears
odds -1.6 age 70 9 traits frailty .2
d0 Cataract | Clouded lens of the eye.
p0 Eye pressure test | Screening for glaucoma.
p1 Cataract surgery | New artificial lens.
d1 Glaucoma | Pressure that damages the optic nerve.
m1 Latanoprost eye drops | Drops that lower eye pressure.
d0 Hearing loss | Trouble following talk in company.
p1 Hearing aid fitting | Small device behind the ear.
[travel] Travel medicine
odds -2.0 age 38 14 traits activity .7
p0 Travel medicine advice | Talk before a long journey abroad.
p0 Hepatitis A vaccination | Vaccination for travellers.
p0 Yellow fever vaccination | Vaccination required by tropical countries.
m0 Atovaquone and proguanil | Malaria prevention for travellers.
d1 Traveller's diarrhoea | Stomach upset on holiday.
[frail] Care in old age
odds -3.4 age 81 6 traits frailty 1.2
d0 Frailty | Weakness, weight loss and falls in old age.
p0 Home nursing visit | A nurse comes to the house.
d0 Repeated falls | Falling more than once a year.
p1 Long-term care assessment | Decides the level of care needed.
p2 Geriatric day hospital | Team treatment of old age.
p3 Palliative care | Comfort and relief near the end of life.
m3 Morphine | Strong opioid against severe pain.
""",
)
